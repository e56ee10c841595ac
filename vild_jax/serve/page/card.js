// Shows a model card: the few forms of Markdown that our cards have, as text and never as HTML.

function element(tag, text) {
  const made = document.createElement(tag);
  text.split(/(`[^`]+`)/).forEach((part, i) => {
    if (i % 2) made.append(Object.assign(document.createElement('code'), { textContent: part.slice(1, -1) }));
    else made.append(part);
  });
  return made;
}

function table(lines) {
  const made = document.createElement('table');
  lines.forEach((line, i) => {
    const cells = line.trim().slice(1, -1).split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll('\\|', '|'));
    if (cells.every((cell) => /^:?-+:?$/.test(cell)) || !cells.some(Boolean)) return;
    const head = !made.rows.length && i === 0;
    const row = made.insertRow();
    cells.forEach((cell, place) => row.append(element(head || !place ? 'th' : 'td', cell)));
  });
  return made;
}

/** Returns the elements of a card; its front matter between two lines '---' is left out. */
export function card(text) {
  const blocks = text.replace(/^---\n.*?\n---\n/s, '').match(/```[^]*?(?:```|$)|(?:(?!```).+\n?)+/g) ?? [];
  return blocks.flatMap((block) => {
    if (block.startsWith('```')) {
      const made = document.createElement('pre');
      made.textContent = block.replace(/^```.*\n/, '').replace(/```$/, '').trimEnd();
      return [made];
    }
    const lines = block.trim().split('\n');
    const heading = /^(#+) (.*)/.exec(lines[0]);
    if (heading) {
      const made = element(`h${Math.min(heading[1].length + 2, 6)}`, heading[2]);
      return lines.length > 1 ? [made, ...card(lines.slice(1).join('\n'))] : [made];
    }
    if (lines.every((line) => line.startsWith('|'))) return [table(lines)];
    if (lines.every((line) => /^[-*] /.test(line))) {
      const list = document.createElement('ul');
      list.append(...lines.map((line) => element('li', line.slice(2))));
      return [list];
    }
    return [element('p', lines.join(' '))];
  });
}
