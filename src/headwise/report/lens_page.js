'use strict';
const data = JSON.parse(document.querySelector('#data').textContent), text = data.text, n = data.tokens;
const $ = id => document.getElementById(id), BLOCK = 48, tile = data.patterns.tile, m = Math.ceil(n / tile);
const bytes = packed => Uint8Array.from(atob(packed), one => one.charCodeAt(0));
const shown = piece => piece.replaceAll('\n', '⏎').replaceAll('\t', '⇥') || '∅';
const number = x => x === null ? '' : Math.abs(x) >= 100 ? x.toFixed(0) : Math.abs(x) >= 0.0995 ? x.toFixed(2) : x.toPrecision(2);
const RAMP = [[247, 251, 255], [198, 219, 239], [107, 174, 214], [33, 113, 181], [8, 48, 107]];
const shade = share => {
  const at = Math.min(1, Math.max(0, share)) * (RAMP.length - 1), low = Math.min(RAMP.length - 2, Math.floor(at));
  return `rgb(${RAMP[low].map((one, i) => Math.round(one + (at - low) * (RAMP[low + 1][i] - one))).join(',')})`;
};
const add = (parent, kind, words = '') => {
  const made = document.createElement(kind); made.textContent = words; parent.append(made); return made;
};
const half = new Float32Array(65536);
for (let i = 0; i < 65536; i++) {
  const exponent = i >> 10 & 31, part = i & 1023, sign = i >> 15 ? -1 : 1;
  half[i] = sign * (exponent ? exponent === 31 ? (part ? NaN : Infinity) : 2 ** (exponent - 15) * (1 + part / 1024) : 2 ** -24 * part);
}
const halves = packed => Float32Array.from(new Uint16Array(bytes(packed).buffer), one => half[one]);

let layer = 0, head = 0, from = -1, corner = [0, 0];
const tiles = data.patterns.tiles.map(() => null), opened = {};
const pattern = () => {
  const name = `${layer}.${head}`, kept = data.patterns.heads[name];
  if (kept && !opened[name])
    opened[name] = {...kept, q: halves(kept.q), k: halves(kept.k), lse: new Float32Array(bytes(kept.lse).buffer)};
  return opened[name];
};
const given = (one, row, column) => {  // the probability that query `row` gives to key `column`
  if (column > row || column < one.first[row]) return 0;
  const d = one.q.length / n;
  let score = 0;
  for (let i = 0; i < d; i++) score += one.q[row * d + i] * one.k[column * d + i];
  score *= one.scale;
  if (one.softcap !== null) score = one.softcap * Math.tanh(score / one.softcap);
  return Math.min(1, Math.exp(score - one.lse[row]));
};

const range = figures => {
  const all = figures.flat().filter(x => x !== null);
  return [Math.min(0, ...all), Math.max(...all)];
};
const colour = () => {
  const name = $('lens').value, card = data.lenses[name], figures = data.figures[name], [low, high] = range(figures);
  $('about').textContent = `A head of a high figure ${card.tells}. Figures: ${card.range}. ${card.paper}.`;
  $('scale').replaceChildren();
  add($('scale'), 'span', number(low));
  add($('scale'), 'i').style.background = `linear-gradient(90deg, ${[0, .25, .5, .75, 1].map(shade).join(',')})`;
  add($('scale'), 'span', number(high));
  for (const cell of $('grid').querySelectorAll('button')) {
    const figure = figures[cell.dataset.layer][cell.dataset.head];
    cell.style.background = shade((figure - low) / (high - low || 1));
    cell.title = `head ${cell.dataset.layer}.${cell.dataset.head}: ${card.title} ${number(figure)}`;
    cell.setAttribute('aria-label', cell.title);
  }
};
const whole = () => {
  tiles[layer] ??= bytes(data.patterns.tiles[layer]);
  const canvas = $('whole'), pen = canvas.getContext('2d'), size = canvas.width / m;
  pen.fillStyle = '#fff'; pen.fillRect(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < m; i++) for (let j = 0; j <= i; j++) {
    pen.fillStyle = shade(tiles[layer][(head * m + i) * m + j] / 255);
    pen.fillRect(j * size, i * size, Math.ceil(size), Math.ceil(size));
  }
  if (pattern()) {
    pen.strokeStyle = '#d9822b'; pen.lineWidth = 2;
    pen.strokeRect(corner[1] / tile * size, corner[0] / tile * size, BLOCK / tile * size, BLOCK / tile * size);
  }
};
const block = () => {
  const one = pattern();
  $('exact').hidden = $('near').hidden = !one;
  if (!one) return;
  const canvas = $('block'), pen = canvas.getContext('2d'), size = canvas.width / BLOCK;
  pen.fillStyle = '#fff'; pen.fillRect(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < BLOCK && corner[0] + i < n; i++) for (let j = 0; j < BLOCK && corner[1] + j < n; j++) {
    if (corner[1] + j > corner[0] + i) break;
    pen.fillStyle = shade(Math.sqrt(given(one, corner[0] + i, corner[1] + j)));
    pen.fillRect(j * size, i * size, size, size);
  }
  const last = Math.min(n, corner[0] + BLOCK) - 1, end = Math.min(n, corner[1] + BLOCK) - 1;
  $('where').textContent = `Each pair of tokens: queries ${corner[0]} to ${last} down, keys ${corner[1]} to ${end} across. A click takes a query.`;
};
const read = () => {
  const spans = $('text').children, one = pattern();
  $('best').replaceChildren();
  for (let i = 0; i < n; i++) spans[i].removeAttribute('style');
  $('text').querySelector('.from')?.classList.remove('from');
  if (!one || from < 0) return;
  const row = Array.from({length: from + 1}, (_, column) => given(one, from, column));
  row.forEach((p, column) => { if (p > 0.002) { spans[column].style.background = shade(Math.sqrt(p)); if (p > 0.2) spans[column].style.color = '#fff'; } });
  spans[from].classList.add('from');
  $('looks').textContent = `From token ${from}, “${shown(text[from])}”, head ${layer}.${head} looks at:`;
  row.map((p, column) => [p, column]).sort((a, b) => b[0] - a[0]).slice(0, 10).forEach(([p, column]) => {
    add($('best'), 'li', `${(100 * p).toFixed(p < .1 ? 1 : 0)} % “${shown(text[column])}” at ${column}`)
      .addEventListener('click', () => take(column));
  });
};
const near = () => {
  const name = `${layer}.${head}`, rows = data.writes[name] ?? [], hurt = data.broken[name];
  $('writes').replaceChildren(); $('hurt').replaceChildren();
  for (const one of rows) {
    const line = add($('writes'), 'tr'); add(line, 'td', `“${shown(one.at)}”`); add(line, 'td', one.writes.map(piece => `“${shown(piece)}”`).join('  '));
  }
  $('loss').textContent = hurt ? `The text costs ${hurt.loss >= 0 ? number(hurt.loss) + ' nats more' : number(-hurt.loss) + ' nats less'} by token.${hurt.hurt.length ? ' Tokens that are foretold worst without it:' : ''}` : data.refused_near ?? '';
  for (const one of hurt?.hurt ?? []) {
    const line = add($('hurt'), 'tr');
    add(line, 'td', `+${number(one.loss)}`);
    add(line, 'td', `${text.slice(Math.max(0, one.place - 6), one.place).map(shown).join('')}[${shown(text[one.place])}]`);
    line.style.cursor = 'pointer'; line.addEventListener('click', () => take(one.place - 1));
  }
};
const take = place => {
  from = place; read();
  $('text').scrollTop = $('text').children[place].offsetTop - $('text').offsetTop - $('text').clientHeight / 2;
};
const open = (which, own) => {
  layer = which; head = own;
  $('grid').querySelectorAll('button').forEach(cell =>
    cell.setAttribute('aria-pressed', cell.dataset.layer == layer && cell.dataset.head == head));
  $('name').textContent = `Head ${layer}.${head}`;
  $('told').replaceChildren();
  for (const [name, card] of Object.entries(data.lenses)) add($('told'), 'span', `${card.title} ${number(data.figures[name][layer][head])}`);
  if (!pattern()) add($('told'), 'span', `For its single tokens: headwise lens --heads ${layer}.${head}`);
  whole(); block(); read(); near();
};
const clicked = (event, cells) => {
  const box = event.target.getBoundingClientRect();
  return [event.clientY - box.top, event.clientX - box.left].map(at => Math.floor(at / box.width * cells));
};

$('grid').style.gridTemplateColumns = `repeat(${1 + Math.max(...data.heads)}, max-content)`;
data.heads.forEach((count, i) => {
  add($('grid'), 'span', i).style.gridColumn = 1;
  for (let j = 0; j < count; j++) {
    const cell = add($('grid'), 'button');
    cell.type = 'button'; cell.dataset.layer = i; cell.dataset.head = j;
    if (data.patterns.heads[`${i}.${j}`]) cell.className = 'near';
    cell.addEventListener('click', () => open(i, j));
  }
});
for (const [name, card] of Object.entries(data.lenses)) add($('lens'), 'option', card.title).value = name;
text.forEach((piece, i) => add($('text'), 'span', piece).title = `${i}`);
$('text').addEventListener('click', event => {
  const place = [...$('text').children].indexOf(event.target);
  if (place >= 0) take(place);
});
$('lens').addEventListener('change', colour);
$('whole').addEventListener('click', event => {
  corner = clicked(event, m).map(at => Math.max(0, Math.min(n - BLOCK, Math.floor(at * tile + tile / 2 - BLOCK / 2))));
  whole(); block();
});
$('block').addEventListener('click', event => { const place = corner[0] + clicked(event, BLOCK)[0]; if (place < n) take(place); });
if (data.lenses.induction) $('lens').value = 'induction';
const figures = data.figures[$('lens').value] ?? [];
const best = Object.keys(data.patterns.heads).map(name => name.split('.').map(Number))
  .sort((a, b) => (figures[b[0]]?.[b[1]] ?? 0) - (figures[a[0]]?.[a[1]] ?? 0))[0] ?? [0, 0];
corner = [Math.max(0, n - BLOCK), Math.max(0, n - BLOCK)];
colour(); open(...best); if (pattern()) take(n - 2);
