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

// Attention rows [layers, heads, N] as maps of patches. `head` is "mean" or "max" over attention heads, the index of
// one, or "rollout", which is null until `rolled` {start, rows [layers * N]} has been put there.
export function attentionMaps({ facts, arrays, shapes }) {
  const [layers, heads, tokens] = shapes.rows;
  const [rows, columns] = facts.grid;
  const patches = rows * columns;
  const joined = new Map(); // "mean" and "max" of a block, made when first asked for
  const of = (all, index) => all.subarray(index * tokens, (index + 1) * tokens);
  function join(layer, how) {
    const name = `${how} ${layer}`;
    if (!joined.has(name)) joined.set(name, (how === "max" ? largest : average)(Array.from({ length: heads }, (_, i) => of(arrays.rows, layer * heads + i))));
    return joined.get(name);
  }
  function row(layer, head) {
    if (head === "rollout") return maps.rolled && of(maps.rolled.rows, layer);
    return typeof head === "number" ? of(arrays.rows, layer * heads + head) : join(layer, head);
  }
  const maps = {
    facts, layers, heads, rows, columns, patches, rolled: null,
    row, // [N] all weights, which sum to 1 (but those of "max")
    map: (layer, head) => row(layer, head)?.subarray(facts.n_prefix) ?? null, // [patches]
    prefix: (layer, head) => row(layer, head)?.subarray(0, facts.n_prefix) ?? null, // class token and registers
    norms: (layer) => arrays.norms.subarray(layer * patches, (layer + 1) * patches), // of the tokens as they leave the block
  };
  return maps;
}

function average(rows) {
  const mean = new Float32Array(rows[0].length);
  for (const one of rows) for (let i = 0; i < mean.length; i++) mean[i] += one[i] / rows.length;
  return mean;
}

function largest(rows) {
  const most = Float32Array.from(rows[0]);
  for (const one of rows) for (let i = 0; i < most.length; i++) if (one[i] > most[i]) most[i] = one[i];
  return most;
}
