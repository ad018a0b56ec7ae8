// Arrays as the server sends them (ui/wire.py): magic, version, JSON {facts, arrays}, then each array, padded to 4 bytes.

const VERSION = 2;
const KINDS = { float32: Float32Array, int32: Int32Array, uint16: Uint16Array, uint8: Uint8Array };

// {facts, arrays: {name: typed array}, shapes: {name: [...]}}; float16 becomes float32
export function unpack(buffer) {
  const view = new DataView(buffer);
  const magic = String.fromCharCode(...new Uint8Array(buffer, 0, 4));
  if (magic !== "MSAT" || view.getUint8(4) !== VERSION) {
    throw new Error("The server sends its results in a newer form. Load the page again.");
  }
  const length = view.getUint32(8, true);
  const told = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 12, length)));
  const [arrays, shapes] = [{}, {}];
  let at = 12 + length;
  for (const [name, kind, shape] of told.arrays) {
    const count = shape.reduce((a, b) => a * b, 1);
    const half = kind === "float16";
    arrays[name] = half ? fromHalf(new Uint16Array(buffer, at, count)) : new KINDS[kind](buffer, at, count);
    shapes[name] = shape;
    at += Math.ceil((half ? 2 * count : arrays[name].byteLength) / 4) * 4;
  }
  return { facts: told.facts, arrays, shapes };
}

// IEEE half precision: sign, 5 bits of exponent, 10 of fraction (Float16Array is not yet in every browser)
function fromHalf(bits) {
  const values = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) {
    const [exponent, fraction] = [(bits[i] >> 10) & 31, bits[i] & 1023];
    const size = exponent === 0 ? fraction * 2 ** -24 : exponent === 31 ? (fraction ? NaN : Infinity) : (1 + fraction / 1024) * 2 ** (exponent - 15);
    values[i] = bits[i] >> 15 ? -size : size;
  }
  return values;
}

// Attention rows [layers, heads, N] as maps of patches
export function attentionMaps({ facts, arrays, shapes }) {
  const [layers, heads, tokens] = shapes.rows;
  const [rows, columns] = facts.grid;
  const patches = rows * columns;
  // weights of one attention head on the patches, prefix tokens left out; no copy
  const head = (layer, index) => {
    const start = (layer * heads + index) * tokens + facts.n_prefix;
    return arrays.rows.subarray(start, start + patches);
  };
  const means = Array.from({ length: layers }, (_, layer) => {
    const mean = new Float32Array(patches);
    for (let index = 0; index < heads; index++) head(layer, index).forEach((w, patch) => { mean[patch] += w / heads; });
    return mean;
  });
  // index -1 is the mean over attention heads
  return { facts, layers, heads, rows, columns, patches, map: (layer, index) => (index < 0 ? means[layer] : head(layer, index)) };
}
