"""A small sentencepiece tokenizer of SigLIP's kind, and what transformers' SiglipTokenizer makes of some texts.

`siglip_golden.json` keeps the tokenizer.json that transformers converts from the sentencepiece model, and the ids of
the model itself. To write it anew, with sentencepiece, protobuf and transformers installed:
`python -m tests.helpers.siglip_golden`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

GOLDEN = Path(__file__).with_name('siglip_golden.json')
TEXTS = (
  'a photo of a T-shirt.',
  "An  Armadillo (animal), it's a dog!",
  '',
  'This is "the" photo of one water_bottle.',
  'sch\u00f6n \ufb01ne \u2167',
  'red\n\tmug ',
  ' '.join(['photo of a'] * 40),
  '#1 & <b>',
)


def _make() -> dict[str, object]:
  import sentencepiece
  import transformers

  from vild_jax.teacher import prompts

  corpus = [
    text
    for name in ('cat', 'armadillo', 'water bottle', 'T-shirt', 'red mug', 'toy elephant', 'fine dog')
    for text in prompts.fill(name, prompts.load_templates('vild'))
  ]
  with tempfile.TemporaryDirectory() as folder:
    lines = Path(folder, 'corpus.txt')
    lines.write_text('\n'.join(corpus))
    # Ids and pieces as in T5's and SigLIP's: <pad> 0, </s> 1, <unk> 2, no start. Their NFKC would take 300 kB.
    sentencepiece.SentencePieceTrainer.train(
      input=str(lines),
      model_prefix=f'{folder}/spiece',
      vocab_size=85,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      normalization_rule_name='identity',
      minloglevel=2,
    )
    slow = transformers.SiglipTokenizer(f'{folder}/spiece.model')
    transformers.T5TokenizerFast.from_pretrained(folder, extra_ids=0).save_pretrained(folder)
    ids = [slow([text], padding='max_length', max_length=64, truncation=True)['input_ids'][0] for text in TEXTS]
    return {'tokenizer': json.loads(Path(folder, 'tokenizer.json').read_text()), 'texts': TEXTS, 'ids': ids}


if __name__ == '__main__':
  made = _make()
  GOLDEN.write_text(json.dumps(made, separators=(',', ':')) + '\n')
  print(GOLDEN.stat().st_size, made['ids'][0])
