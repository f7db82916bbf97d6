'use strict';
// What pages of lenses share: elements, packed numbers, words, colours.
const $ = id => document.getElementById(id);
const bytes = packed => Uint8Array.from(atob(packed), one => one.charCodeAt(0));
const shown = piece => piece.replaceAll('\n', '⏎').replaceAll('\t', '⇥') || '∅';
const number = x => x === null ? '' : Math.abs(x) >= 100 ? x.toFixed(0) : Math.abs(x) >= 0.0995 ? x.toFixed(2) : x.toPrecision(2);
const RAMP = [[247, 251, 255], [198, 219, 239], [107, 174, 214], [33, 113, 181], [8, 48, 107]];
const shade = (share, ramp = RAMP) => {
  const at = Math.min(1, Math.max(0, share)) * (ramp.length - 1), low = Math.min(ramp.length - 2, Math.floor(at));
  return `rgb(${ramp[low].map((one, i) => Math.round(one + (at - low) * (ramp[low + 1][i] - one))).join(',')})`;
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
