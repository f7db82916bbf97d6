const sides = JSON.parse(document.querySelector('#data').textContent), BLOCK = 48;
let side = 0, less = false;  // which side is looked at; whether the grid shows how far the second lies above the first
let data, text, n, tile, m, opened;

const BELOW = [[255, 250, 245], [253, 208, 162], [253, 141, 60], [217, 72, 1], [127, 39, 4]];
const signed = share => share < 0 ? shade(-share, BELOW) : shade(share);

let layer = 0, head = 0, from = -1, corner = [0, 0];
for (const one of sides) {
  one.opened = {}; one.tiles = one.patterns.tiles.map(() => null);
  if (one.plan) {
    one.lenses.reach = {title: 'left by the plan', range: '0 to 1, the share of attention', paper: one.plan.told,
      tells: 'still finds under the plan what it looks at from the last tokens'};
    one.figures.reach = one.plan.reach;
  }
}
const alike = sides.length === 2 && JSON.stringify(sides[0].heads) === JSON.stringify(sides[1].heads);
const use = which => {
  side = which; data = sides[which]; text = data.text; n = data.tokens; opened = data.opened;
  tile = data.patterns.tile; m = Math.ceil(n / tile); from = -1; corner = [Math.max(0, n - BLOCK), Math.max(0, n - BLOCK)];
};
use(0);
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

const figuresOf = name => less && sides[0].figures[name] && sides[1].figures[name]
  ? sides[1].figures[name].map((row, i) => row.map((x, j) => {
    const first = sides[0].figures[name][i][j];
    return x === null || first === null ? null : x - first;
  }))
  : data.figures[name];
const range = figures => {
  const all = figures.flat().filter(x => x !== null), high = Math.max(...all);
  if (!less) return [Math.min(0, ...all), high];
  const far = Math.max(high, -Math.min(...all)) || 1;
  return [-far, far];
};
const colour = () => {
  const name = $('lens').value, card = data.lenses[name], figures = figuresOf(name), [low, high] = range(figures);
  $('about').textContent = `A head of a high figure ${card.tells}. Figures: ${card.range}. ${card.paper}.`;
  const shaded = figure => less ? signed(figure / high) : shade((figure - low) / (high - low || 1));
  $('scale').replaceChildren();
  add($('scale'), 'span', number(low));
  const colours = [0, .25, .5, .75, 1].map(at => shaded(low + at * (high - low)));
  add($('scale'), 'i').style.background = `linear-gradient(90deg, ${colours.join(',')})`;
  add($('scale'), 'span', number(high));
  for (const cell of $('grid').querySelectorAll('button')) {
    const figure = figures[cell.dataset.layer][cell.dataset.head];
    cell.style.background = shaded(figure);
    cell.title = `head ${cell.dataset.layer}.${cell.dataset.head}: ${card.title} ${less && figure > 0 ? '+' : ''}${number(figure)}`;
    cell.setAttribute('aria-label', cell.title);
  }
  together(name);
};
const tiled = (one, canvas) => {  // the whole text of a side, as tiles
  const pen = canvas.getContext('2d'), many = Math.ceil(one.tokens / one.patterns.tile), size = canvas.width / many;
  one.tiles[layer] ??= bytes(one.patterns.tiles[layer]);
  pen.fillStyle = '#fff'; pen.fillRect(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < many; i++) for (let j = 0; j <= i; j++) {
    pen.fillStyle = shade(one.tiles[layer][(head * many + i) * many + j] / 255);
    pen.fillRect(j * size, i * size, Math.ceil(size), Math.ceil(size));
  }
};
const whole = () => {
  const canvas = $('whole'), pen = canvas.getContext('2d'), size = canvas.width / m;
  tiled(data, canvas);
  if (pattern()) {
    pen.strokeStyle = '#d9822b'; pen.lineWidth = 2;
    pen.strokeRect(corner[1] / tile * size, corner[0] / tile * size, BLOCK / tile * size, BLOCK / tile * size);
  }
  $('besides').hidden = !alike;
  if (!alike) return;
  tiled(sides[1 - side], $('other'));
  $('named').textContent = `The same head: ${called(1 - side)}.`;
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
  const heads = data.plan?.kept[layer], left = heads && new Set(heads[Math.floor(head / (data.heads[layer] / heads.length))]);
  for (let i = 0; i < n; i++) {
    spans[i].removeAttribute('style');
    spans[i].classList.toggle('gone', Boolean(left) && i < data.plan.read && !left.has(i));
  }
  $('text').querySelector('.from')?.classList.remove('from');
  $('looks').textContent = 'A click on a token shows what the head looks at from there: the darker, the more.';
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
const hurtRows = (id, hurt) => {  // a table of tokens that are foretold worse, each after those before it
  for (const one of hurt) {
    const line = add($(id), 'tr');
    add(line, 'td', `+${number(one.loss)}`);
    add(line, 'td', `${text.slice(Math.max(0, one.place - 6), one.place).map(shown).join('')}[${shown(text[one.place])}]`);
    line.style.cursor = 'pointer'; line.addEventListener('click', () => take(one.place - 1));
  }
};
const costs = loss => loss >= 0 ? `${number(loss)} nats more` : `${number(-loss)} nats less`;
const together = name => {
  const lost = data.together[name];
  $('together').hidden = !lost;
  if (!lost) return;
  $('lost').textContent = `Without ${lost.heads.join(', ')}, a twentieth of all heads, the text costs ${costs(lost.loss)} by token; `
    + `without ${lost.others} others of the same layers, drawn by chance, ${costs(lost.others_loss)}.`
    + (lost.hurt.length ? ' Tokens that are foretold worst without the former:' : '');
  $('worst').replaceChildren();
  hurtRows('worst', lost.hurt);
};
const near = () => {
  const name = `${layer}.${head}`, rows = data.writes[name] ?? [], hurt = data.broken[name];
  $('writes').replaceChildren(); $('hurt').replaceChildren();
  for (const one of rows) {
    const line = add($('writes'), 'tr'); add(line, 'td', `“${shown(one.at)}”`); add(line, 'td', one.writes.map(piece => `“${shown(piece)}”`).join('  '));
  }
  $('loss').textContent = hurt ? `The text costs ${costs(hurt.loss)} by token.${hurt.hurt.length ? ' Tokens that are foretold worst without it:' : ''}` : data.refused_near ?? '';
  hurtRows('hurt', hurt?.hurt ?? []);
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
  for (const [name, card] of Object.entries(data.lenses)) {
    const both = alike && sides.every(one => one.figures[name]) ? sides : [data];
    add($('told'), 'span', `${card.title} ${both.map(one => number(one.figures[name][layer][head])).join(' → ')}`);
  }
  if (!pattern()) add($('told'), 'span', `For its single tokens: headwise lens --heads ${layer}.${head}`);
  whole(); block(); read(); near();
};
const clicked = (event, cells) => {
  const box = event.target.getBoundingClientRect();
  return [event.clientY - box.top, event.clientX - box.left].map(at => Math.floor(at / box.width * cells));
};

const called = which => [sides[which].model, sides[which].prompt].filter(Boolean).join(', ');
const drawGrid = () => {
  $('grid').replaceChildren();
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
};
const drawSide = () => {
  const lens = $('lens').value;
  $('read').textContent = `${called(side)}: ${n} tokens were read.`;
  drawGrid();
  $('lens').replaceChildren(); $('text').replaceChildren();
  for (const [name, card] of Object.entries(data.lenses)) add($('lens'), 'option', card.title).value = name;
  if (data.lenses[lens]) $('lens').value = lens;
  text.forEach((piece, i) => add($('text'), 'span', piece).title = `${i}`);
};
const drawPlan = () => {
  const plan = data.plan;
  $('planned').hidden = !plan;
  if (!plan) return;
  $('cost').textContent = `Read under ${plan.told} up to token ${plan.read}, the others cost ${costs(plan.loss)} each. In the text below, what is crossed out is no longer there for the head.${plan.hurt.length ? ' Tokens that are foretold worst:' : ''}`;
  hurtRows('missed', plan.hurt);
};
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
if (sides.length === 2) {
  $('which').hidden = false;
  const second = sides[0].model === sides[1].model && called(0) === called(1) ? `${called(1)} (2)` : called(1);
  [called(0), second].forEach((name, i) => add($('side'), 'option', name).value = i);
  if (alike) add($('side'), 'option', 'the second less the first').value = 'less';
}
$('side').addEventListener('change', () => {
  less = $('side').value === 'less';
  use(less ? 1 : Number($('side').value));
  drawSide(); colour();
  if (layer < data.heads.length && head < data.heads[layer]) open(layer, head); else open(0, 0);
});
drawSide(); drawPlan();
if (data.lenses.induction) $('lens').value = 'induction';
const figures = data.figures[$('lens').value] ?? [];
const best = Object.keys(data.patterns.heads).map(name => name.split('.').map(Number))
  .sort((a, b) => (figures[b[0]]?.[b[1]] ?? 0) - (figures[a[0]]?.[a[1]] ?? 0))[0] ?? [0, 0];
colour(); open(...best); if (pattern()) take(n - 2);
