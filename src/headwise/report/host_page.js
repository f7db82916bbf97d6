const data = JSON.parse($('data').textContent), BLOCK = 48;
let stack, drawn, layer = 0, head = 0, from = 0, corner = [0, 0], m, n;
const opened = {};
const count = name => data.tokens[name];
const word = (name, place) => {  // what a token is called
  const {words, grid, before} = data.shown[name];
  if (!grid) return `“${shown(words[place])}”`;
  if (place < before) return place ? `token ${place}` : 'class token';
  return `patch ${Math.floor((place - before) / grid[1])}, ${(place - before) % grid[1]}`;
};
const spelled = piece => shown(piece);
const pattern = () => {
  const key = `${stack.name}.${layer}.${head}`, kept = drawn.heads[`${layer}.${head}`];
  if (kept && !opened[key]) opened[key] = {
    ...kept, q: halves(kept.q), k: halves(kept.k), lse: new Float32Array(bytes(kept.lse).buffer),
    bias: kept.bias === null ? null : new Float32Array(bytes(kept.bias).buffer),
  };
  return opened[key];
};
const given = (one, row, column) => {  // the probability that query `row` gives to key `column`
  if (column < one.first[row] || column > one.last[row]) return 0;
  const d = one.q.length / m;
  let score = 0;
  for (let i = 0; i < d; i++) score += one.q[row * d + i] * one.k[column * d + i];
  return Math.min(1, Math.exp(score * one.scale + (one.bias ? one.bias[column - row + m - 1] : 0) - one.lse[row]));
};
const colour = () => {
  const name = $('lens').value, card = data.lenses[name], figures = stack.figures[name];
  const all = figures.flat().filter(x => x !== null), low = Math.min(0, ...all), high = Math.max(...all);
  $('about').textContent = `A head of a high figure ${card.tells}. Figures: ${card.range}. ${card.paper}.`;
  $('scale').replaceChildren();
  add($('scale'), 'span', number(low));
  add($('scale'), 'i').style.background = `linear-gradient(90deg, ${[0, .25, .5, .75, 1].map(at => shade(at)).join(',')})`;
  add($('scale'), 'span', number(high));
  for (const cell of $('grid').children) if (cell.dataset.layer) {
    const figure = figures[cell.dataset.layer][cell.dataset.head];
    cell.style.background = shade((figure - low) / (high - low || 1));
    cell.title = `head ${cell.dataset.layer}.${cell.dataset.head}: ${card.title} ${number(figure)}`;
    cell.setAttribute('aria-label', cell.title);
  }
};
const whole = () => {
  const canvas = $('whole'), pen = canvas.getContext('2d');
  const down = data.drawn.tile[stack.queries], across = data.drawn.tile[stack.keys];
  const rows = Math.ceil(m / down), columns = Math.ceil(n / across), tiles = bytes(drawn.tiles[layer]);
  const high = canvas.height / rows, wide = canvas.width / columns;
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) {
    pen.fillStyle = shade(tiles[(head * rows + i) * columns + j] / 255);
    pen.fillRect(j * wide, i * high, Math.ceil(wide), Math.ceil(high));
  }
  if (!pattern()) return;
  pen.strokeStyle = '#d9822b'; pen.lineWidth = 2;
  pen.strokeRect(corner[1] / across * wide, corner[0] / down * high, Math.min(BLOCK, n) / across * wide, Math.min(BLOCK, m) / down * high);
};
const block = () => {
  const one = pattern();
  $('exact').hidden = $('near').hidden = !one;
  if (!one) return;
  const canvas = $('block'), pen = canvas.getContext('2d'), rows = Math.min(BLOCK, m), columns = Math.min(BLOCK, n);
  const high = canvas.height / rows, wide = canvas.width / columns;
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) {
    pen.fillStyle = shade(Math.sqrt(given(one, corner[0] + i, corner[1] + j)));
    pen.fillRect(j * wide, i * high, Math.ceil(wide), Math.ceil(high));
  }
  $('where').textContent = `Each pair: ${stack.queries} ${corner[0]} to ${corner[0] + rows - 1} down, ${stack.keys} ${corner[1]} to ${corner[1] + columns - 1} across. A click takes a query.`;
};
const asks = () => stack.queries === stack.keys ? 'keys' : 'queries';  // where a query is clicked on
const marked = (box, paint) => box.querySelectorAll('[data-place]').forEach(one => paint(one, Number(one.dataset.place)));
const take = place => {
  from = place;
  const one = pattern();
  if (!one) return;
  const row = Array.from({length: n}, (_, column) => given(one, from, column)), most = Math.max(...row);
  marked($('near'), token => token.classList.remove('from'));
  $(asks()).querySelector(`[data-place="${from}"]`).classList.add('from');
  marked($('keys'), (token, at) => {
    token.title = `${word(stack.keys, at)}: ${(100 * row[at]).toFixed(1)} %`;
    if (token.closest('.patches')) { token.style.background = `rgba(217, 72, 1, ${0.85 * row[at] / most})`; return; }
    token.style.background = row[at] > 0.002 ? shade(Math.sqrt(row[at])) : '';
    token.style.color = row[at] > 0.2 ? '#fff' : '';
  });
  $('looks').textContent = `From ${word(stack.queries, from)}, at ${from}, head ${stack.name} ${layer}.${head} looks at:`;
  $('best').replaceChildren();
  row.map((p, column) => [p, column]).sort((a, b) => b[0] - a[0]).slice(0, 8)
    .forEach(([p, column]) => add($('best'), 'li', `${(100 * p).toFixed(p < .1 ? 1 : 0)} % ${word(stack.keys, column)} at ${column}`));
};
const token = (parent, kind, place, words = '') => {
  const made = add(parent, kind, words);
  made.dataset.place = place;
  return made;
};
const lay = (box, name) => {  // what was read, as words or as a picture of patches
  box.replaceChildren(); box.className = '';
  const {words, grid, before, picture} = data.shown[name];
  if (!grid) { box.className = 'words'; words.forEach((piece, i) => token(box, 'span', i, piece)); return; }
  const others = add(box, 'div'); others.className = 'before';
  for (let i = 0; i < before; i++) token(others, 'button', i, word(name, i)).type = 'button';
  const scene = add(box, 'div'); scene.className = 'scene';
  const image = add(scene, 'img'); image.src = picture; image.alt = 'the picture that was read';
  const patches = add(scene, 'div'); patches.className = 'patches';
  patches.style.gridTemplate = `repeat(${grid[0]}, 1fr) / repeat(${grid[1]}, 1fr)`;
  for (let i = 0; i < grid[0] * grid[1]; i++) {
    const patch = token(patches, 'button', before + i);
    patch.type = 'button'; patch.setAttribute('aria-label', word(name, before + i));
  }
};
const open = (which, own) => {
  layer = which; head = own;
  $('grid').querySelectorAll('button').forEach(cell =>
    cell.setAttribute('aria-pressed', cell.dataset.layer == layer && cell.dataset.head == head));
  $('name').textContent = `Head ${stack.name} ${layer}.${head}`;
  $('told').replaceChildren();
  for (const [name, rows] of Object.entries(stack.figures)) add($('told'), 'span', `${data.lenses[name].title} ${number(rows[layer][head])}`);
  if (!pattern()) add($('told'), 'span', `For its single tokens: headwise lens --heads ${stack.name}.${layer}.${head}`);
  whole(); block(); take(Math.min(from, m - 1));
};
const use = which => {
  stack = data.stacks[which]; drawn = data.drawn[stack.name]; m = count(stack.queries); n = count(stack.keys);
  corner = [0, 0]; from = 0;
  $('grid').replaceChildren();
  $('grid').style.gridTemplateColumns = `repeat(${1 + Math.max(...stack.heads)}, max-content)`;
  stack.heads.forEach((many, i) => {
    add($('grid'), 'span', i).style.gridColumn = 1;
    for (let j = 0; j < many; j++) {
      const cell = add($('grid'), 'button');
      cell.type = 'button'; cell.dataset.layer = i; cell.dataset.head = j;
      if (drawn.heads[`${i}.${j}`]) cell.className = 'near';
      cell.addEventListener('click', () => open(i, j));
    }
  });
  const lens = $('lens').value;
  $('lens').replaceChildren();
  for (const name of Object.keys(stack.figures)) add($('lens'), 'option', data.lenses[name].title).value = name;
  if (stack.figures[lens]) $('lens').value = lens;
  $('tiled').textContent = `All in tiles: ${stack.queries} down, ${stack.keys} across. A click goes to a place.`;
  $('asks').textContent = `Token by token: a click into the ${stack.queries} shows what the head looks at from there`;
  $('answers').textContent = `What it looks at: the ${stack.keys}`;
  $('queries').hidden = $('answers').hidden = stack.queries === stack.keys;
  lay($('queries'), stack.queries); lay($('keys'), stack.keys);
  $(asks()).classList.add('asked');
  $('refused').replaceChildren();
  for (const [name, why] of Object.entries(stack.refused)) add($('refused'), 'p', `${name} was not taken: ${why}`);
  const figures = stack.figures[$('lens').value];
  $('lens').parentElement.hidden = !figures;
  if (figures) colour(); else $('about').textContent = 'No lens was taken of these layers.';
  const known = Object.keys(drawn.heads).map(name => name.split('.').map(Number));
  const best = known.sort((a, b) => (figures?.[b[0]][b[1]] ?? 0) - (figures?.[a[0]][a[1]] ?? 0))[0] ?? [0, 0];
  open(...best);
};
const clicked = event => {
  const box = event.target.getBoundingClientRect();
  return [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
};
$('near').addEventListener('click', event => {
  const place = event.target.dataset.place;
  if (place && $(asks()).contains(event.target)) take(Number(place));
});
$('whole').addEventListener('click', event => {
  const sizes = [m, n];
  corner = clicked(event).map((at, i) => Math.max(0, Math.min(sizes[i] - BLOCK, Math.floor(at * sizes[i] - BLOCK / 2))));
  whole(); block();
});
$('block').addEventListener('click', event => take(corner[0] + Math.min(Math.min(BLOCK, m) - 1, Math.floor(clicked(event)[0] * Math.min(BLOCK, m)))));
$('lens').addEventListener('change', colour);
$('stack').addEventListener('change', () => use(Number($('stack').value)));
data.stacks.forEach((one, i) => { add($('stack'), 'option', one.queries === one.keys ? `${one.name}: ${one.queries}` : `${one.name}: ${one.queries} to ${one.keys}`).value = i; });
$('which').hidden = data.stacks.length === 1;
$('read').textContent = `${data.model}, an ${data.kind}: ${Object.entries(data.tokens).map(([name, many]) => `${many} tokens of the ${name}`).join(' and ')} were read.`;
$('stack').value = data.stacks.length - 1;
use(data.stacks.length - 1);
