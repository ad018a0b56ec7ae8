// Attention rows as the server sends them (ui/wire.py): magic, version, JSON, float32 [layers, heads, tokens].

const VERSION = 1;

export function unpack(buffer) {
  const view = new DataView(buffer);
  const magic = String.fromCharCode(...new Uint8Array(buffer, 0, 4));
  if (magic !== "MSAT" || view.getUint8(4) !== VERSION) {
    throw new Error("The server sends these maps in a newer form. Load the page again.");
  }
  const length = view.getUint32(8, true);
  const facts = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 12, length)));
  const { layers, heads, tokens, n_prefix: prefix } = facts;
  const [rows, columns] = facts.grid;
  const all = new Float32Array(buffer, 12 + length, layers * heads * tokens);
  const patches = rows * columns;
  // weights of one attention head on the patches, prefix tokens left out; no copy
  const head = (layer, index) => {
    const start = (layer * heads + index) * tokens + prefix;
    return all.subarray(start, start + patches);
  };
  const means = Array.from({ length: layers }, (_, layer) => {
    const mean = new Float32Array(patches);
    for (let index = 0; index < heads; index++) head(layer, index).forEach((w, patch) => { mean[patch] += w / heads; });
    return mean;
  });
  // index -1 is the mean over attention heads
  return { facts, layers, heads, rows, columns, patches, map: (layer, index) => (index < 0 ? means[layer] : head(layer, index)) };
}
