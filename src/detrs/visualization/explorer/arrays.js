/* Arrays of the payload: {dtype, shape, scale, offset, data: base64, little-endian}; value = offset + scale * stored. */

const STORED = { uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array };

/** The bytes of a base64 text. */
function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** A read-only array of numbers, decoded when the first value is read: a page has megabytes that nobody may open. */
class NumberArray {
  constructor(json) {
    this.json = json;
    this.shape = json.shape;
    this.strides = json.shape.map((_, axis) => json.shape.slice(axis + 1).reduce((a, b) => a * b, 1));
    this.stored = null;
  }

  /** The value at a position in the flat array. */
  at(position) {
    if (!this.stored) {
      this.stored = new STORED[this.json.dtype](bytesOf(this.json.data).buffer);
      this.json.data = ""; // the text is not needed any more
    }
    return this.json.offset + this.json.scale * this.stored[position];
  }

  /** The value at (i, j, ...). */
  get(...indices) {
    return this.at(this.start(...indices));
  }

  /** Position of the first value of the sub-array at (i, j, ...). */
  start(...indices) {
    return indices.reduce((sum, index, axis) => sum + index * this.strides[axis], 0);
  }

  /** The sub-array at (i, j, ...) as a flat Float32Array. */
  slice(...indices) {
    const size = indices.length ? this.strides[indices.length - 1] : this.shape.reduce((a, b) => a * b, 1);
    const first = this.start(...indices);
    return Float32Array.from({ length: size }, (_, i) => this.at(first + i));
  }
}

/** `array` as a NumberArray, or null where the payload has none. */
function numbers(array) {
  return array ? new NumberArray(array) : null;
}
