// Perceptually even scales, ten anchors each with straight lines between them: [256 * 3] red, green, blue.

const channels = (hex) => [hex >> 16, (hex >> 8) & 255, hex & 255];

function table(anchors) {
  const levels = new Uint8ClampedArray(256 * 3);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (anchors.length - 1);
    const low = Math.min(Math.floor(at), anchors.length - 2);
    const [a, b] = [channels(anchors[low]), channels(anchors[low + 1])];
    for (let c = 0; c < 3; c++) levels[3 * i + c] = Math.round(a[c] + (b[c] - a[c]) * (at - low));
  }
  return levels;
}

// attention: from black through purple and orange to pale yellow
export const inferno = table([0x000004, 0x1b0c41, 0x4a0c6b, 0x781c6d, 0xa52c60, 0xcf4446, 0xed6925, 0xfb9b06, 0xf7d13d, 0xfcffa4]);
// similarity: from dark blue through grey to yellow
export const cividis = table([0x00224e, 0x123570, 0x3b496c, 0x575d6d, 0x707173, 0x8a8678, 0xa59c74, 0xc3b369, 0xe1cc55, 0xfee838]);
// match lines: viridis from its blue up, as its purple is too dark over photographs
export const viridis = table([0x3e4a89, 0x35608d, 0x2c738e, 0x24868e, 0x1f998a, 0x2eb37c, 0x58c765, 0x8bd646, 0xc2df23, 0xfde725]);

// "rgb(r g b)" at t in 0..1
export function colourAt(levels, t) {
  const at = 3 * Math.round(255 * Math.min(1, Math.max(0, t)));
  return `rgb(${levels[at]} ${levels[at + 1]} ${levels[at + 2]})`;
}

export function drawRamp(canvas, levels = inferno) {
  canvas.width = 256;
  canvas.height = 1;
  const image = new ImageData(256, 1);
  for (let i = 0; i < 256; i++) image.data.set([levels[3 * i], levels[3 * i + 1], levels[3 * i + 2], 255], 4 * i);
  canvas.getContext("2d").putImageData(image, 0, 0);
}
