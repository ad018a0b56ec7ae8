// Where patches lie on a picture, in fractions of its width and height. `frame` is what the server's Frame says.

const NUDGE = 1e-9; // patches, as in memssl_core/data/images.py

export function framed(frame) {
  const { width, height, rows, columns, patch_px: patch, scale_x, scale_y, left_px: left, top_px: top } = frame;
  const x = (column) => (column * patch + left) / scale_x / width;
  const y = (row) => (row * patch + top) / scale_y / height;
  return {
    rows,
    columns,
    // the rectangle all patches cover: x0, y0, x1, y1
    cover: [x(0), y(0), x(columns), y(rows)],
    box: (index) => {
      const [row, column] = [Math.floor(index / columns), index % columns];
      return [x(column), y(row), x(column + 1), y(row + 1)];
    },
    // the middle of a patch in pixels of the picture, as the server's `centre_of`
    centre: (index) => {
      const [row, column] = [Math.floor(index / columns), index % columns];
      return [x(column + 0.5) * width - 0.5, y(row + 0.5) * height - 0.5];
    },
    // the patch at a point of the picture, null outside; on an edge the next one
    at: (fx, fy) => {
      const column = Math.floor((fx * width * scale_x - left) / patch + NUDGE);
      const row = Math.floor((fy * height * scale_y - top) / patch + NUDGE);
      return row < 0 || column < 0 || row >= rows || column >= columns ? null : row * columns + column;
    },
  };
}

// {rows, columns} of a picture shown whole at another input size (long side, px), as memssl_core/data/images.py cuts it
export function gridAt({ width, height, patch_px }, size) {
  const scale = size / Math.max(width, height);
  const patches = (side) => Math.max(1, halfEven((side * scale) / patch_px));
  return { rows: patches(height), columns: patches(width) };
}

// The patches of a picture shown whole at another input size
export function framedAt(frame, size) {
  const { rows, columns } = gridAt(frame, size);
  const scales = { scale_x: (columns * frame.patch_px) / frame.width, scale_y: (rows * frame.patch_px) / frame.height };
  return framed({ ...frame, rows, columns, ...scales });
}

const halfEven = (v) => (v % 1 === 0.5 ? 2 * Math.round(v / 2) : Math.round(v));
