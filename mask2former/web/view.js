// Shows a region's class and score where the mouse is, and shades all else. `element` holds the view, whose content
// is replaced with every result, so events are caught here and looked up there.
const views = new WeakMap();

// The region's number at each pixel, read once from the picture of numbers.
function numbersOf(view) {
  if (views.has(view)) return views.get(view);
  const picture = view.querySelector(".m2f-numbers");
  if (!picture.complete || picture.naturalWidth === 0) return null;
  const canvas = document.createElement("canvas");
  canvas.width = picture.naturalWidth;
  canvas.height = picture.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const bytes = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const numbers = new Uint32Array(canvas.width * canvas.height);
  for (let i = 0; i < numbers.length; i++) numbers[i] = bytes[4 * i] | (bytes[4 * i + 1] << 8) | (bytes[4 * i + 2] << 16);
  const found = { width: canvas.width, height: canvas.height, numbers, shown: 0 };
  views.set(view, found);
  return found;
}

function show(view, data, number) {
  const tip = view.querySelector(".m2f-tip");
  const shade = view.querySelector(".m2f-shade");
  const label = JSON.parse(view.dataset.labels)[number - 1];
  tip.textContent = label ? `${label.name} ${label.score}`.trim() : "";
  if (data.shown === number) return;
  data.shown = number;
  for (const row of view.querySelectorAll("tr[data-number]")) {
    row.classList.toggle("m2f-active", Number(row.dataset.number) === number);
  }
  shade.width = data.width;
  shade.height = data.height;
  if (!label) return;
  const context = shade.getContext("2d");
  const pixels = context.createImageData(data.width, data.height);
  for (let i = 0; i < data.numbers.length; i++) pixels.data[4 * i + 3] = data.numbers[i] === number ? 0 : 150;
  context.putImageData(pixels, 0, 0);
}

element.addEventListener("mousemove", (event) => {
  const view = element.querySelector(".m2f-view");
  const data = view && numbersOf(view);
  if (!data) return;
  const row = event.target.closest("tr[data-number]");
  const drawing = view.querySelector(".m2f-drawing").getBoundingClientRect();
  const x = Math.floor(((event.clientX - drawing.left) / drawing.width) * data.width);
  const y = Math.floor(((event.clientY - drawing.top) / drawing.height) * data.height);
  const inside = x >= 0 && y >= 0 && x < data.width && y < data.height;
  show(view, data, row ? Number(row.dataset.number) : inside ? data.numbers[y * data.width + x] : 0);
});

element.addEventListener("mouseleave", () => {
  const view = element.querySelector(".m2f-view");
  const data = view && numbersOf(view);
  if (data) show(view, data, 0);
});
