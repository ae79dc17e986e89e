// Sound as numbers: files, subtitles, and the mel picture. Samples are Float32Array, mono, within -1..1.

// A WAV file of samples, 16 bit.
export function wav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, value) => [...value].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((x, i) => view.setInt16(44 + 2 * i, Math.max(-32768, Math.min(32767, Math.round(x * 32768))), true));
  return new Blob([view], { type: "audio/wav" });
}

// Cues {start, end, text} as subtitles.
export function subtitles(cues, vtt) {
  const two = (n, width = 2) => String(n).padStart(width, "0");
  const time = (seconds) => {
    const ms = Math.round(seconds * 1000);
    const parts = [Math.floor(ms / 3600000), Math.floor(ms / 60000) % 60, Math.floor(ms / 1000) % 60];
    return parts.map((n) => two(n)).join(":") + (vtt ? "." : ",") + two(ms % 1000, 3);
  };
  const escaped = (text) =>
    vtt ? text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;") : text.replaceAll("-->", "->");
  const blocks = cues.map(({ start, end, text }, i) =>
    `${vtt ? "" : `${i + 1}\n`}${time(start)} --> ${time(end)}\n${escaped(text)}\n`);
  return (vtt ? "WEBVTT\n\n" : "") + blocks.join("\n");
}

// Samples of 16-bit little-endian bytes.
export function fromPcm(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Float32Array.from({ length: bytes.byteLength >> 1 }, (_, i) => view.getInt16(2 * i, true) / 32768);
}

export function joined(parts) {
  const whole = new Float32Array(parts.reduce((n, part) => n + part.length, 0));
  parts.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
  return whole;
}

const SIZE = 1024, HOP = 256, BANDS = 80;
const COLOURS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis

// The power spectrum of SIZE samples, in place: radix 2.
function spectrum(re, im) {
  for (let i = 1, j = 0; i < SIZE; i++) {
    let bit = SIZE >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [re[i], re[j]] = [re[j], re[i]];
  }
  for (let half = 1; half < SIZE; half *= 2) {
    for (let k = 0; k < half; k++) {
      const c = Math.cos((Math.PI * k) / half), s = -Math.sin((Math.PI * k) / half);
      for (let a = k; a < SIZE; a += 2 * half) {
        const b = a + half, x = re[b] * c - im[b] * s, y = re[b] * s + im[b] * c;
        re[b] = re[a] - x;
        im[b] = im[a] - y;
        re[a] += x;
        im[a] += y;
      }
    }
  }
}

// Draws the mel of samples as they come: one column for each HOP of them.
export class Picture {
  constructor(canvas, rate) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.context.clearRect(0, 0, canvas.width, canvas.height);
    this.left = new Float32Array(0);
    this.columns = [];
    this.window = Float32Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE));
    const mel = (hz) => 2595 * Math.log10(1 + hz / 700), hz = (mel) => 700 * (10 ** (mel / 2595) - 1);
    this.edges = Array.from({ length: BANDS + 2 }, (_, i) => (hz((mel(rate / 2) * i) / (BANDS + 1)) * SIZE) / rate);
  }

  add(samples) {
    const all = joined([this.left, samples]);
    let at = 0;
    for (; at + SIZE <= all.length; at += HOP) this.columns.push(this.column(all.subarray(at, at + SIZE)));
    this.left = all.slice(at);
    this.draw();
  }

  column(samples) {
    const re = samples.map((x, i) => x * this.window[i]), im = new Float32Array(SIZE);
    spectrum(re, im);
    return Array.from({ length: BANDS }, (_, band) => {
      const [low, centre, high] = this.edges.slice(band, band + 3);
      let power = 1e-10;
      for (let k = Math.max(0, Math.floor(low)); k <= Math.min(SIZE / 2, Math.ceil(high)); k++) {
        const weight = k < centre ? (k - low) / (centre - low) : (high - k) / (high - centre);
        if (weight > 0) power += weight * (re[k] ** 2 + im[k] ** 2);
      }
      return Math.log10(power);
    });
  }

  draw() {
    if (!this.columns.length) return;
    const image = new ImageData(this.columns.length, BANDS);
    this.columns.forEach((column, x) => column.forEach((value, band) => {
      const place = Math.max(0, Math.min(0.999, (value + 5) / 8)) * (COLOURS.length - 1);
      const [one, other] = COLOURS.slice(Math.floor(place), Math.floor(place) + 2), part = place % 1;
      const pixel = one.map((c, i) => c + part * (other[i] - c));
      image.data.set([...pixel, 255], 4 * ((BANDS - 1 - band) * this.columns.length + x));
    }));
    const small = new OffscreenCanvas(image.width, image.height);
    small.getContext("2d").putImageData(image, 0, 0);
    this.context.drawImage(small, 0, 0, this.canvas.width, this.canvas.height);
  }
}

// Plays samples one after another, from the first on.
export class Player {
  constructor(context, rate) {
    this.context = context;
    this.rate = rate;
    this.next = 0;
    this.nodes = [];
  }

  add(samples) {
    if (!samples.length) return;
    const buffer = this.context.createBuffer(1, samples.length, this.rate);
    buffer.copyToChannel(samples, 0);
    const node = this.context.createBufferSource();
    node.buffer = buffer;
    node.connect(this.context.destination);
    this.next = Math.max(this.next, this.context.currentTime + 0.05);
    node.start(this.next);
    this.begin ??= this.next;
    this.next += buffer.duration;
    this.nodes.push(node);
  }

  stop() {
    this.nodes.forEach((node) => node.stop());
  }
}
