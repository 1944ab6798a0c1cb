// The page of `smalti serve`: state in one object, everything on the screen drawn from it, all numbers from the API.

const $ = (id) => document.getElementById(id);
const state = {
  model: null,
  image: "", // a name of the model's images, or a data URI
  patches: null, // masked patches that were painted; null: drawn by kind, share and seed
  draw: "blockwise",
  ratio: 0.4,
  seed: 0,
  temperature: 1,
  sampleSeed: 0,
  found: null, // the last prediction
  patch: null, // the patch whose guesses are shown
  from: null, // the patch whose attention is shown
  attention: null, // rows of the chosen layer and head
};

// ---- the API

const token = keptToken();

function keptToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) sessionStorage.setItem("token", given);
  return sessionStorage.getItem("token");
}

async function ask(path, body, kind = "application/json") {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const options = { headers };
  if (body !== undefined) {
    Object.assign(options, { method: "POST", body: kind === "application/json" ? JSON.stringify(body) : body });
    headers["Content-Type"] = kind;
  }
  const answer = await fetch(`api/${path}`, options);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

// One request of a kind at a time; of those that come meanwhile only the last one is sent.
function latest(work) {
  let running = false;
  let again = false;
  return async function run() {
    if (running) {
      again = true;
      return;
    }
    running = true;
    do {
      again = false;
      try {
        await work(() => again);
      } catch (error) {
        say(error.message, true);
      }
    } while (again);
    running = false;
  };
}

const maskOf = () => (state.patches ? { patches: state.patches } : { draw: state.draw, ratio: state.ratio, seed: state.seed });

const predict = latest(async (stale) => {
  const began = performance.now();
  const { image, temperature, sampleSeed } = state;
  const sampled = state.model.target === "tokens" ? 4 : 0;
  const found = await ask("predict", { image, mask: maskOf(), samples: sampled, temperature, seed: sampleSeed });
  if (stale()) return;
  state.found = found;
  state.attention = null;
  showPrediction();
  const time = Math.round(performance.now() - began);
  const loss = found.loss_nats === null ? "" : `, ${percent(found.accuracy)} of their tokens guessed, ${found.loss_nats.toFixed(2)} nats a token`;
  say(`${found.masked.length} of ${cells().length} patches masked${loss}; ${time} ms`);
  document.body.dataset.ready = String(Number(document.body.dataset.ready || 0) + 1);
  if ($("overlay").value === "attention") attend();
});

const attend = latest(async (stale) => {
  const asked = { image: state.image, mask: maskOf(), layer: Number($("layer").value), head: Number($("head").value) };
  const large = cells().length > 400;
  if (large) asked.patch = state.from ?? 0;
  const found = await ask("attention", asked);
  if (stale()) return;
  state.attention = Object.fromEntries(found.from.map((patch, place) => [patch, found.attention[place]]));
  showOverlay();
});

const findNearest = latest(async (stale) => {
  const found = await ask("nearest", { image: state.image });
  if (!stale()) $("nearest").replaceChildren(...found.nearest.map((one) => figure(one.picture, `${one.label ?? one.key} · ${one.similarity.toFixed(2)}`)));
});

// ---- small parts

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function figure(picture, caption) {
  const image = element("img", { src: picture ?? "data:,", alt: caption });
  if (isSmooth()) image.className = "smooth";
  return element("figure", {}, image, element("figcaption", { textContent: caption }));
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const isSmooth = () => state.model.image_size[0] > 64;
const cells = (board = "paint") => [...$(board).querySelectorAll("button")];

function say(text, wrong = false) {
  $("said").textContent = text;
  $("said").classList.toggle("wrong", wrong);
}

// ---- the two boards

function makeBoard(id) {
  const board = $(id);
  const [rows, columns] = state.model.grid;
  board.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
  board.append(element("img", { alt: "", draggable: false }));
  for (let row = 0; row < rows; row++) {
    const line = element("div");
    line.setAttribute("role", "row");
    for (let column = 0; column < columns; column++) {
      const cell = element("button", { type: "button", tabIndex: row || column ? -1 : 0 }, element("i"));
      cell.setAttribute("role", "gridcell");
      cell.dataset.patch = row * columns + column;
      line.append(cell);
    }
    board.append(line);
  }
  board.addEventListener("keydown", (event) => move(event, board));
}

function move(event, board) {
  const [rows, columns] = state.model.grid;
  const patch = Number(event.target.dataset.patch);
  const row = Math.floor(patch / columns);
  const to = {
    ArrowLeft: patch % columns ? patch - 1 : patch,
    ArrowRight: patch % columns < columns - 1 ? patch + 1 : patch,
    ArrowUp: row ? patch - columns : patch,
    ArrowDown: row < rows - 1 ? patch + columns : patch,
    Home: row * columns,
    End: (row + 1) * columns - 1,
  }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  focusOn(board, to);
}

function focusOn(board, patch) {
  for (const cell of board.querySelectorAll("button")) cell.tabIndex = Number(cell.dataset.patch) === patch ? 0 : -1;
  board.querySelector(`[data-patch="${patch}"]`).focus();
}

const patchAt = (event, board) => {
  const cell = document.elementFromPoint(event.clientX, event.clientY)?.closest("button");
  return cell && board.contains(cell) ? Number(cell.dataset.patch) : null;
};

function setMasked(patch, masked) {
  const now = new Set(state.patches ?? state.found?.masked ?? []);
  if (now.has(patch) === masked) return;
  now[masked ? "add" : "delete"](patch);
  state.patches = [...now].sort((a, b) => a - b);
  showMask(state.patches);
  keepLink();
  predict();
}

function listenToPainting() {
  const board = $("paint");
  let painting = null; // whether the stroke masks, or unmasks
  let before = null; // the mask when it began
  const takeBack = () => { // two fingers zoom the page: what the first one painted was not meant
    if (painting === null) return;
    painting = null;
    state.patches = before.patches;
    showMask(before.masked);
    keepLink();
    predict();
  };
  board.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary) return takeBack();
    const patch = patchAt(event, board);
    if (patch === null || event.button) return;
    before = { patches: state.patches, masked: state.patches ?? state.found?.masked ?? [] };
    painting = !cells()[patch].classList.contains("masked");
    board.setPointerCapture(event.pointerId);
    focusOn(board, patch);
    setMasked(patch, painting);
  });
  board.addEventListener("pointermove", (event) => {
    const patch = painting === null || !event.isPrimary ? null : patchAt(event, board);
    if (patch !== null) setMasked(patch, painting);
  });
  board.addEventListener("pointerup", () => (painting = null));
  board.addEventListener("pointercancel", takeBack);
  board.addEventListener("click", (event) => {
    if (event.detail === 0) toggle(event.target); // space or Enter
  });
  const toggle = (cell) => setMasked(Number(cell.dataset.patch), !cell.classList.contains("masked"));
}

function listenToInspecting() {
  const board = $("result");
  const attendFrom = (patch) => {
    if (patch === null || $("overlay").value !== "attention" || patch === state.from) return;
    state.from = patch;
    if (state.attention && state.attention[patch] === undefined) attend();
    else showOverlay();
  };
  board.addEventListener("pointermove", (event) => attendFrom(patchAt(event, board)));
  board.addEventListener("focusin", (event) => attendFrom(Number(event.target.dataset.patch)));
  board.addEventListener("click", (event) => {
    const cell = event.target.closest("button");
    if (!cell) return;
    state.patch = Number(cell.dataset.patch);
    focusOn(board, state.patch);
    showPatch();
  });
}

// ---- what is on the screen

function showMask(masked) {
  const there = new Set(masked);
  const columns = state.model.grid[1];
  cells().forEach((cell, patch) => {
    const on = there.has(patch);
    cell.classList.toggle("masked", on);
    cell.setAttribute("aria-label", `row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}, ${on ? "masked" : "visible"}`);
    cell.setAttribute("aria-selected", String(on));
  });
}

function showPrediction() {
  const { found } = state;
  const pictures = found.pictures;
  $("paint").querySelector("img").src = pictures.original;
  $("result").querySelector("img").src = pictures.predicted;
  showMask(found.masked);
  const views = [
    ["original", "original"], ["masked", "masked"], ["tokens", "visual tokens, a colour each"],
    ["tokenizer", "the tokens decoded"], ["predicted", "predicted"],
  ].filter(([name]) => pictures[name]);
  $("views").replaceChildren(...views.map(([name, caption]) => figure(pictures[name], caption)));
  $("samples").replaceChildren(...found.samples.map((one, number) => figure(one.picture, `drawn ${number + 1}`)));
  const masked = new Set(found.masked);
  const columns = state.model.grid[1];
  cells("result").forEach((cell, patch) => {
    cell.classList.toggle("guessed", masked.has(patch));
    const about = masked.has(patch) ? "predicted" : "visible";
    cell.setAttribute("aria-label", `row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}, ${about}`);
  });
  showPatch();
  showOverlay();
}

function showOverlay() {
  const kind = $("overlay").value;
  const { found, from, attention } = state;
  const row = attention?.[from];
  const values = kind === "entropy" ? found.entropy : kind === "attention" ? row?.patches : null;
  const most = kind === "entropy" ? Math.log(state.model.vocabulary) : Math.max(...(values ?? [0]));
  cells("result").forEach((cell, patch) => {
    cell.firstChild.style.opacity = values?.[patch] ? (0.85 * values[patch]) / most : 0;
    cell.classList.toggle("from", kind === "attention" && patch === from);
  });
  $("result").classList.toggle("attention", kind === "attention");
  $("scale").classList.toggle("attention", kind === "attention");
  for (const label of document.querySelectorAll(".attending")) label.classList.toggle("off", kind !== "attention");
  $("scale").querySelector("i").hidden = !values;
  $("scale-said").textContent = overlaySaid(kind, values, most, row);
}

function overlaySaid(kind, values, most, row) {
  if (kind === "none") return "";
  if (kind === "entropy") return `0 to ${most.toFixed(1)} nats, which is a guess at random`;
  if (values) return `0 to ${percent(most)}; ${percent(row.cls)} goes to the class token`;
  if (row === null) return "not in this block: an encoder without mask tokens has the visible patches, its decoder asks for the masked ones";
  return "point at a patch of the prediction, or move there with the keyboard";
}

function showPatch() {
  const { found, patch } = state;
  for (const cell of cells("result")) cell.setAttribute("aria-selected", String(Number(cell.dataset.patch) === patch));
  const columns = state.model.grid[1];
  if (found.tokens === null) return $("inspect").replaceChildren(element("p", { textContent: found.note }));
  if (patch === null) return $("inspect").replaceChildren(element("p", { textContent: "Choose a patch of the prediction to see its best guesses." }));
  const title = element("h3", { textContent: `Row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}` });
  const guess = found.guesses.find((one) => one.patch === patch);
  const own = found.tokens[patch];
  if (!guess) {
    const text = `Not masked. Its visual token is ${own}.`;
    $("inspect").replaceChildren(title, element("p", { textContent: text }), element("div", { id: "codes" }));
    return showCodes(own);
  }
  const entropy = found.entropy[patch].toFixed(2);
  const text = `Its own token ${own} was given ${percent(guess.probability)}; entropy ${entropy} nats.`;
  const lines = guess.best.map((one) => guessLine(one, own));
  if (!guess.best.some((one) => one.code === own)) lines.push(guessLine({ code: own, probability: guess.probability }, own));
  $("inspect").replaceChildren(title, element("p", { textContent: text }), element("ol", {}, ...lines), element("div", { id: "codes" }));
}

function guessLine({ code, probability }, own) {
  const tile = element("img", { src: state.found.tiles[code], alt: "" });
  const button = element("button", { type: "button", title: `Codes like ${code}`, onclick: () => showCodes(code) }, tile);
  button.setAttribute("aria-label", `Codes like ${code}`);
  const bar = element("i");
  bar.style.width = percent(probability).replace(" ", "");
  const line = element("li", {}, button, element("b", { textContent: code }), element("div", { className: "bar" }, bar),
    element("span", { className: "share", textContent: percent(probability) }));
  if (code === own) Object.assign(line, { className: "true", title: "the token of the tokenizer" });
  return line;
}

async function showCodes(code) {
  try {
    const found = await ask(`codes/${code}?count=12`);
    const tiles = found.nearest.map((one) => element("span", { title: `${one.code}, ${one.distance.toFixed(3)} away` },
      element("img", { src: one.tile, alt: `code ${one.code}` })));
    $("codes")?.replaceChildren(element("p", { textContent: `Codes that look most like ${code}:` }), element("div", { className: "codes" }, ...tiles));
  } catch (error) {
    say(error.message, true);
  }
}

function showControls() {
  $("draw").value = state.draw;
  $("ratio").value = Math.round(100 * state.ratio);
  $("ratio-said").textContent = `${Math.round(100 * state.ratio)} %`;
  $("seed").value = state.seed;
  $("temperature").value = state.temperature;
  $("temperature-said").textContent = Number(state.temperature).toFixed(1);
  $("sample-seed").value = state.sampleSeed;
  for (const button of $("images").children) button.setAttribute("aria-pressed", String(button.title === state.image));
}

// ---- permalink: what the page shows, in the hash; an image of one's own is not in it

function keepLink() {
  const kept = new URLSearchParams();
  if (!state.image.startsWith("data:")) kept.set("image", state.image);
  if (state.patches) kept.set("patches", state.patches.join("."));
  else Object.entries({ draw: state.draw, ratio: state.ratio, seed: state.seed }).forEach(([name, value]) => kept.set(name, value));
  kept.set("temperature", state.temperature);
  kept.set("samples", state.sampleSeed);
  history.replaceState(null, "", `#${kept}`);
}

function readLink() {
  const kept = new URLSearchParams(location.hash.slice(1));
  const number = (name, least, most, usual) => {
    const value = kept.has(name) ? Number(kept.get(name)) : NaN;
    return value >= least && value <= most ? value : usual;
  };
  const names = state.model.images.map((one) => one.name);
  const length = state.model.grid[0] * state.model.grid[1];
  if (names.includes(kept.get("image"))) state.image = kept.get("image");
  if (["random", "blockwise"].includes(kept.get("draw"))) state.draw = kept.get("draw");
  state.ratio = number("ratio", 0.01, 0.99, state.ratio);
  state.seed = Math.floor(number("seed", 0, Number.MAX_SAFE_INTEGER, state.seed));
  state.temperature = number("temperature", 0.1, 2, state.temperature);
  state.sampleSeed = Math.floor(number("samples", 0, Number.MAX_SAFE_INTEGER, state.sampleSeed));
  const painted = (kept.get("patches") ?? "").split(".").filter(Boolean).map(Number);
  state.patches = kept.has("patches") ? painted.filter((patch) => Number.isInteger(patch) && patch >= 0 && patch < length) : null;
}

// ---- from the controls to the state

function change(part) {
  Object.assign(state, part);
  showControls();
  keepLink();
  predict();
}

function choose(image) {
  change({ image });
  if (state.model.features) findNearest();
}

async function take(file) {
  if (!file) return;
  say(`Reading ${file.name}`);
  try {
    choose((await ask("image", file, "application/octet-stream")).picture);
  } catch (error) {
    say(error.message, true);
  }
}

async function download() {
  const pictures = [...$("views").querySelectorAll("img"), ...$("samples").querySelectorAll("img")];
  const side = Math.max(224, state.model.image_size[0]);
  const canvas = element("canvas", { width: (side + 8) * pictures.length + 8, height: side + 16 });
  const paper = canvas.getContext("2d");
  paper.fillStyle = "#fff";
  paper.fillRect(0, 0, canvas.width, canvas.height);
  paper.imageSmoothingEnabled = isSmooth();
  pictures.forEach((picture, place) => paper.drawImage(picture, 8 + place * (side + 8), 8, side, side));
  const file = await new Promise((done) => canvas.toBlob(done, "image/png"));
  const link = element("a", { href: URL.createObjectURL(file), download: "smalti.png" });
  link.click();
  URL.revokeObjectURL(link.href);
}

async function copyLink() {
  keepLink();
  const own = state.image.startsWith("data:") ? "; your image is not part of it" : "";
  try {
    await navigator.clipboard.writeText(location.href);
    $("link-said").textContent = `copied${own}`;
  } catch {
    $("link-said").textContent = `it is in the address bar${own}`;
  }
}

function chooseLayer() {
  const { heads } = state.model.layers[$("layer").value - 1];
  const before = Number($("head").value || 0);
  const options = [["0", "mean of all"], ...Array.from({ length: heads }, (_, head) => [head + 1, head + 1])];
  $("head").replaceChildren(...options.map(([value, textContent]) => element("option", { value, textContent })));
  $("head").value = before <= heads ? before : 0;
}

function listen() {
  $("draw").onchange = () => change({ draw: $("draw").value, patches: null });
  $("ratio").oninput = () => change({ ratio: Number($("ratio").value) / 100, patches: null });
  $("seed").onchange = () => change({ seed: Math.max(0, Math.floor(Number($("seed").value) || 0)), patches: null });
  $("redraw").onclick = () => change({ seed: state.seed + 1, patches: null });
  $("clear").onclick = () => change({ patches: [] });
  $("temperature").oninput = () => change({ temperature: Number($("temperature").value) });
  $("sample-seed").onchange = () => change({ sampleSeed: Math.max(0, Math.floor(Number($("sample-seed").value) || 0)) });
  $("resample").onclick = () => change({ sampleSeed: state.sampleSeed + 1 });
  $("overlay").onchange = () => ($("overlay").value === "attention" && !state.attention ? (showOverlay(), attend()) : showOverlay());
  $("layer").onchange = () => (chooseLayer(), attend());
  $("head").onchange = attend;
  $("download").onclick = download;
  $("link").onclick = copyLink;
  $("file").onchange = () => take($("file").files[0]);
  document.addEventListener("dragover", (event) => (event.preventDefault(), document.body.classList.add("dropping")));
  document.addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dropping"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    take(event.dataTransfer.files[0]);
  });
  window.addEventListener("hashchange", () => (readLink(), change({})));
  listenToPainting();
  listenToInspecting();
}

async function start() {
  const model = (state.model = await ask("model"));
  const [height, width] = model.image_size;
  document.title = `${model.name} · smalti`;
  $("name").textContent = model.name;
  const target = model.target === "tokens" ? `${model.vocabulary} visual tokens` : "pixels";
  $("facts").textContent = `${height} x ${width} pixels, patches of ${model.patch_size}; predicts ${target} with a ${model.decoder} decoder.`;
  state.image = model.images[0].name;
  state.draw = model.masking;
  state.ratio = Math.round(100 * model.mask_ratio) / 100;
  $("images").append(...model.images.map(({ name, picture }) => {
    const button = element("button", { type: "button", title: name, onclick: () => choose(name) }, element("img", { src: picture, alt: name }));
    if (isSmooth()) button.className = "smooth";
    return button;
  }));
  $("layer").append(...model.layers.map(({ name }, place) => element("option", { value: place + 1, textContent: name })));
  $("layer").value = model.layers.length;
  chooseLayer();
  $("sampling").hidden = model.target !== "tokens";
  $("overlay").querySelector("[value=entropy]").hidden = model.target !== "tokens";
  $("neighbours").hidden = !model.features;
  for (const id of ["paint", "result"]) {
    makeBoard(id);
    $(id).classList.toggle("smooth", isSmooth());
  }
  readLink();
  listen();
  choose(state.image);
}

start().catch((error) => say(error.message, true));
