// Light or dark: as the system says, or as chosen. No module, so that it runs before anything is painted.
{
  const KEY = 'vild-theme';
  const apply = (theme) => {
    if (theme === 'system') delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  };
  const read = () => {
    try {
      return localStorage.getItem(KEY) ?? 'system';
    } catch {
      return 'system'; // the browser keeps nothing
    }
  };
  apply(read());
  document.addEventListener('DOMContentLoaded', () => {
    for (const button of document.querySelectorAll('input[name="theme"]')) {
      button.checked = button.value === read();
      button.addEventListener('change', () => {
        apply(button.value);
        try {
          localStorage.setItem(KEY, button.value);
        } catch {
          // then the choice holds until the page is left
        }
      });
    }
  });
}
