"""The drawn world of the demo and its teacher."""
