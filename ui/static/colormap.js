// Inferno, from black through purple and orange to pale yellow: ten anchors, straight lines between them.

const ANCHORS = [0x000004, 0x1b0c41, 0x4a0c6b, 0x781c6d, 0xa52c60, 0xcf4446, 0xed6925, 0xfb9b06, 0xf7d13d, 0xfcffa4];
const channels = (hex) => [hex >> 16, (hex >> 8) & 255, hex & 255];

// [256 * 3] red, green, blue
export const inferno = new Uint8ClampedArray(256 * 3);
for (let i = 0; i < 256; i++) {
  const at = (i / 255) * (ANCHORS.length - 1);
  const low = Math.min(Math.floor(at), ANCHORS.length - 2);
  const [a, b] = [channels(ANCHORS[low]), channels(ANCHORS[low + 1])];
  for (let c = 0; c < 3; c++) inferno[3 * i + c] = Math.round(a[c] + (b[c] - a[c]) * (at - low));
}

export function drawRamp(canvas) {
  canvas.width = 256;
  canvas.height = 1;
  const image = new ImageData(256, 1);
  for (let i = 0; i < 256; i++) {
    image.data.set([inferno[3 * i], inferno[3 * i + 1], inferno[3 * i + 2], 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}
