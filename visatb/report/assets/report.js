/* The page's own behaviour: theme, what-if panel, browser of predictions. All texts of models and data go in as
   text nodes, never as markup. */
"use strict";

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function make(tag, css, text) {
  const element = document.createElement(tag);
  if (css) element.className = css;
  if (text !== undefined) element.textContent = text;
  return element;
}

function data(id) {
  const element = byId(id);
  return element ? JSON.parse(element.textContent) : null;
}

/* ---- theme, copying, the section in view ---- */

function startTheme() {
  const button = byId("theme");
  const root = document.documentElement;
  const store = (value) => { try { localStorage.setItem("visatb-theme", value); } catch (error) { /* private window */ } };
  const stored = () => { try { return localStorage.getItem("visatb-theme"); } catch (error) { return null; } };
  const system = () => (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const asked = new URLSearchParams(location.hash.slice(1)).get("theme") || stored();
  if (asked === "dark" || asked === "light") root.dataset.theme = asked;
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = (root.dataset.theme || system()) === "dark" ? "light" : "dark";
    store(root.dataset.theme);
  });
}

function startCopying() {
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const source = byId(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch (error) {
        getSelection().selectAllChildren(source); // no clipboard here: the text is selected for the user to copy
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
}

function startNavigation() {
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const link = links.get(entry.target.id);
      if (link && entry.isIntersecting) {
        for (const other of links.values()) other.removeAttribute("aria-current");
        link.setAttribute("aria-current", "true");
      }
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const id of links.keys()) if (byId(id)) watcher.observe(byId(id));
}

/* ---- what if? ---- */

function startWhatIf() {
  const given = data("whatif-data");
  if (!given) return;
  const weigh = (t, alpha) => visatbWeights(given.out, given.in, given.difficulty, t, alpha);
  const state = { t: given.temperature, alpha: [...given.alpha] };
  const asked = new URLSearchParams(location.hash.slice(1));
  if (Number(asked.get("t")) > 0) state.t = Number(asked.get("t"));
  const alpha = (asked.get("alpha") || "").split("/").map(Number);
  if (alpha.length === 3 && alpha.every((a) => a >= 0) && alpha[0] + alpha[1] + alpha[2] > 0) {
    state.alpha = alpha.map((a) => a / (alpha[0] + alpha[1] + alpha[2]));
  }
  const before = weigh(given.temperature, given.alpha);
  const sliders = [0, 1, 2].map((k) => byId(`w-a${k}`));
  const clamp = (t) => Math.min(5, Math.max(0.1, t));

  const draw = () => {
    byId("w-t").value = Math.log10(clamp(state.t));
    byId("w-t").setAttribute("aria-valuetext", state.t.toFixed(3));
    byId("w-t-out").textContent = state.t.toFixed(3);
    sliders.forEach((slider, k) => {
      slider.value = state.alpha[k];
      byId(`w-a${k}-out`).textContent = state.alpha[k].toFixed(2);
    });
    const weights = weigh(state.t, state.alpha);
    drawBars(given, state, weights, before);
    drawCurves(given, state, weigh);
    const low = Math.min(...weights);
    const high = Math.max(...weights);
    const inside = low >= WEIGHT_RANGE[0] && high <= WEIGHT_RANGE[1];
    byId("w-range").className = inside ? "quiet" : "warn";
    byId("w-range").textContent = `Weights from ${low.toFixed(3)} to ${high.toFixed(3)}`
      + (inside ? ", within the advised 0.5 to 2." : ": outside the advised 0.5 to 2.");
    byId("w-guards").textContent = guardWords(given.guards, weights);
    byId("w-command").textContent = command(given, state, weights);
  };

  byId("w-t").addEventListener("input", (event) => { state.t = 10 ** Number(event.target.value); draw(); });
  sliders.forEach((slider, k) => slider.addEventListener("input", () => {
    state.alpha = moveAlpha(state.alpha, k, Number(slider.value));
    draw();
  }));
  byId("w-reset").addEventListener("click", () => {
    state.t = given.temperature;
    state.alpha = [...given.alpha];
    draw();
  });
  byId("w-auto").addEventListener("click", () => {
    state.t = autoTemperature(given.out, given.in, given.difficulty, state.alpha);
    draw();
  });
  byId("whatif-panel").hidden = false;
  draw();
}

function guardWords(guards, weights) {
  const parts = guards.map(({ name, falls }) => {
    const change = guardShift(falls, weights);
    return `${name} ${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(4)}`;
  });
  if (!parts.length) return "";
  return `Guards against equal weights: ${parts.join(", ")}. A guess, linear in λ, from what each task's data did to the proxies.`;
}

function drawBars(given, state, weights, before) {
  const parts = weightComponents(given.out, given.in, given.difficulty, state.t);
  const top = Math.max(2.05, ...weights, ...before) * 1.02;
  const rows = given.units.map((unit, i) => {
    const row = make("tr");
    const head = make("th");
    head.scope = "row";
    head.append(make("span", `key m${i % 7}`), unit);
    const members = given.groups[unit];
    if (members) head.title = members.join(", ");
    const cell = make("td", "track-cell");
    const one = make("s");
    one.style.left = `${100 / top}%`;
    let done = 0;
    parts.forEach((part, k) => {
      const bar = make("i", ["part-out", "part-in", "part-difficulty"][k]);
      bar.style.left = `${(100 * done) / top}%`;
      bar.style.width = `${(100 * state.alpha[k] * part[i]) / top}%`;
      done += state.alpha[k] * part[i];
      cell.append(bar);
    });
    const mark = make("b");
    mark.style.left = `${(100 * before[i]) / top}%`;
    mark.title = `in this run: ${before[i].toFixed(4)}`;
    cell.append(one, mark);
    const value = make("td", "num", weights[i].toFixed(4));
    value.dataset.value = weights[i];
    const change = weights[i] - before[i];
    const text = Math.abs(change) < 5e-5 ? "–" : (change > 0 ? "+" : "−") + Math.abs(change).toFixed(3);
    row.append(head, cell, value, make("td", `num ${text === "–" ? "" : change > 0 ? "up" : "down"}`, text));
    return row;
  });
  byId("w-bars").tBodies[0].replaceChildren(...rows);
}

function drawCurves(given, state, weigh) {
  const svg = byId("w-curves");
  const shape = (tag, css, attributes, text) => {
    const element = document.createElementNS(SVG, tag);
    element.setAttribute("class", css);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const grid = Array.from({ length: 61 }, (_, k) => 10 ** (-1 + (k / 60) * Math.log10(50)));
  const lines = grid.map((t) => weigh(t, state.alpha));
  const top = Math.min(Math.max(2.2, ...lines.flat()), 4);
  const x = (t) => 30 + ((Math.log10(t) + 1) / Math.log10(50)) * 380;
  const y = (weight) => 145 - (Math.min(weight, top) / top) * 135;
  const shapes = [];
  for (const value of [0.5, 1, 2]) {
    shapes.push(shape("line", value === 1 ? "zero" : "grid", { x1: 30, x2: 410, y1: y(value), y2: y(value) }));
    shapes.push(shape("text", "tick end", { x: 25, y: y(value) + 4 }, value));
  }
  for (const t of [0.1, 0.2, 0.5, 1, 2, 5]) shapes.push(shape("text", "tick middle", { x: x(t), y: 163 }, t));
  given.units.forEach((unit, i) => {
    const points = grid.map((t, k) => `${x(t).toFixed(1)},${y(lines[k][i]).toFixed(1)}`).join(" ");
    const line = shape("polyline", `line m${i % 7}`, { points });
    line.append(shape("title", "", {}, unit));
    shapes.push(line);
  });
  const at = x(Math.min(5, Math.max(0.1, state.t)));
  shapes.push(shape("line", "now", { x1: at, x2: at, y1: 5, y2: 148 }));
  svg.replaceChildren(...shapes);
}

function command(given, state, weights) {
  const byTask = { ...given.fixed };
  given.units.forEach((unit, i) => {
    for (const task of given.groups[unit] || [unit]) byTask[task] = weights[i];
  });
  const quoted = (name) => (/^[\w@%+=:,./-]+$/.test(name) ? name : `'${name.replaceAll("'", `'"'"'`)}'`);
  return `--task_names ${given.tasks.map(quoted).join(" ")} --visatb_weights `
    + given.tasks.map((task) => byTask[task].toFixed(4)).join(" ") + given.applied;
}

/* ---- predictions ---- */

const PER_PAGE = 6;
const CHIP = 45; // percent of colour in the best answer's chip: more, and its text is no longer easy to read

function startBrowser() {
  const given = data("browser-data");
  if (!given) return;
  const state = { page: 0, first: 0, filter: "all", search: "", models: new Set() };
  const asked = new URLSearchParams(location.hash.slice(1));
  if (given.pages[Number(asked.get("task"))]) state.page = Number(asked.get("task"));
  const list = byId("b-list");
  let shown = [];

  const present = () => given.models.filter((model) => given.pages[state.page].questions.some((q) => model in q.answers));
  const score = (question, model) => (question.answers[model] ? question.answers[model][1] : null);
  const better = (question, a, b) => {
    const [x, y] = [score(question, a), score(question, b)];
    if (x === null || y === null || x === undefined || y === undefined) return 0;
    return given.pages[state.page].higher ? x - y : y - x;
  };
  const pair = () => {
    const there = present();
    const finals = there.filter((model) => given.finals.includes(model));
    if (finals.length > 1) {
      const mine = finals.includes("VisATB") ? "VisATB" : finals[0];
      const other = finals.includes("EW") && mine !== "EW" ? "EW" : finals.find((model) => model !== mine);
      return [mine, other];
    }
    return there.length > 1 ? [there.find((model) => model === `plus_mini:${given.pages[state.page].task}`) || there[1], there[0]] : null;
  };

  const options = () => {
    const [a, b] = pair() || [];
    const choices = [["all", "all questions"]];
    if (a) choices.push(["up", `${a} better than ${b}`], ["down", `${a} worse than ${b}`], ["same", `${a} and ${b} alike`]);
    choices.push(["differ", "models disagree"]);
    return choices;
  };

  const matches = (question) => {
    if (state.filter === "differ") {
      const said = new Set([...state.models].filter((m) => question.answers[m]).map((m) => question.answers[m][0].trim()));
      if (said.size < 2) return false;
    } else if (state.filter !== "all" && pair()) {
      const difference = better(question, ...pair());
      if ((state.filter === "up" && !(difference > 0)) || (state.filter === "down" && !(difference < 0))
        || (state.filter === "same" && difference !== 0)) return false;
    }
    if (!state.search) return true;
    const texts = [question.id, question.question, ...question.truths, ...[...state.models].map((m) => (question.answers[m] || [""])[0])];
    return texts.some((text) => text.toLowerCase().includes(state.search));
  };

  const chip = (value, bounded) => {
    if (value === null || value === undefined) return make("span", "quiet", "–");
    const element = make("span", "chip", Number.isInteger(value) ? String(value) : value.toFixed(3));
    if (bounded) element.style.setProperty("--share", `${Math.round(Math.max(0, Math.min(1, value)) * CHIP)}%`);
    return element;
  };

  const card = (question, number, page) => {
    const article = make("article", "question");
    article.tabIndex = -1;
    article.setAttribute("aria-label", `Question ${number} of ${shown.length}`);
    const pictures = make("div", "pictures");
    for (const index of question.images) {
      const image = make("img");
      image.src = given.images[index];
      image.alt = `Image of question ${question.id}`;
      image.loading = "lazy";
      image.addEventListener("load", () => { if (image.naturalWidth <= 64) image.classList.add("tiny"); });
      pictures.append(image);
    }
    if (!question.images.length) pictures.append(make("div", "none", "no image"));
    const text = make("div");
    text.append(make("h3", "", question.question), make("div", "id", `id ${question.id}`));
    const truth = make("div", "truth");
    truth.append(make("small", "", question.truths.length > 1 ? "Truths" : "Truth"), document.createElement("br"), question.truths.join("\n"));
    const table = make("table");
    const caption = make("caption", "hidden", `Answers and their ${page.metric || "score"}`);
    const body = make("tbody");
    for (const model of given.models) {
      if (!state.models.has(model) || !question.answers[model]) continue;
      const row = make("tr");
      const head = make("th", "", model === `STL:${page.task}` ? "STL" : model);
      head.scope = "row";
      const cell = make("td", "score");
      cell.append(chip(question.answers[model][1], page.bounded));
      row.append(head, make("td", "said", question.answers[model][0] || "(nothing)"), cell);
      body.append(row);
    }
    table.append(caption, body);
    text.append(truth, table);
    article.append(pictures, text);
    return article;
  };

  const draw = () => {
    const page = given.pages[state.page];
    shown = page.questions.filter(matches);
    state.first = Math.min(state.first, Math.max(0, Math.floor((shown.length - 1) / PER_PAGE) * PER_PAGE));
    const visible = shown.slice(state.first, state.first + PER_PAGE);
    list.replaceChildren(...visible.map((question, k) => card(question, state.first + k + 1, page)));
    byId("b-status").textContent = `${shown.length} of ${page.questions.length} questions shown here; the ${page.split} set has `
      + `${page.total.toLocaleString("en")}.` + (page.metric ? ` Score: ${page.metric}${page.higher ? "" : ", lower is better"}.` : "");
    byId("b-where").textContent = shown.length ? `${state.first + 1} – ${state.first + visible.length} of ${shown.length}` : "none";
    byId("b-prev").disabled = state.first === 0;
    byId("b-next").disabled = state.first + PER_PAGE >= shown.length;
  };

  const turn = (pages) => {
    const next = state.first + pages * PER_PAGE;
    if (next < 0 || next >= shown.length) return false;
    state.first = next;
    draw();
    return true;
  };

  const focus = (article) => {
    article.focus({ preventScroll: true });
    article.scrollIntoView({ block: "nearest" });
  };

  const step = (by) => {
    const cards = [...list.children];
    const now = cards.indexOf(document.activeElement && document.activeElement.closest(".question"));
    const next = now < 0 ? (by > 0 ? 0 : -1) : now + by;
    if (cards[next]) focus(cards[next]);
    else if (turn(by)) focus(by > 0 ? list.firstElementChild : list.lastElementChild);
  };

  const changePage = () => {
    const there = present();
    const finals = there.filter((model) => given.finals.includes(model));
    const page = given.pages[state.page];
    const wanted = finals.length ? finals : there.filter((model) => ["base", "mini", `plus_mini:${page.task}`, `single:${page.task}`].includes(model));
    state.models = new Set(wanted.length ? wanted : there);
    state.first = 0;
    state.filter = "all";
    byId("b-filter").replaceChildren(...options().map(([value, text]) => new Option(text, value)));
    byId("b-models").replaceChildren(...there.map((model) => {
      const label = make("label");
      const box = make("input");
      box.type = "checkbox";
      box.checked = state.models.has(model);
      box.addEventListener("change", () => {
        if (box.checked) state.models.add(model);
        else state.models.delete(model);
        byId("b-models-count").textContent = `(${state.models.size} of ${there.length})`;
        draw();
      });
      label.append(box, model);
      return label;
    }));
    byId("b-models-count").textContent = `(${state.models.size} of ${there.length})`;
    draw();
  };

  byId("b-page").append(...given.pages.map((page, k) => new Option(`${page.task} (${page.split})`, k)));
  byId("b-page").value = state.page;
  byId("b-page").addEventListener("change", (event) => { state.page = Number(event.target.value); changePage(); });
  byId("b-filter").addEventListener("change", (event) => { state.filter = event.target.value; state.first = 0; draw(); });
  byId("b-search").addEventListener("input", (event) => { state.search = event.target.value.trim().toLowerCase(); state.first = 0; draw(); });
  byId("b-search").addEventListener("keydown", (event) => { if (event.key === "Escape") event.target.blur(); });
  byId("b-prev").addEventListener("click", () => turn(-1));
  byId("b-next").addEventListener("click", () => turn(1));
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea");
    if (event.ctrlKey || event.metaKey || event.altKey || typing) return;
    const actions = { j: () => step(1), k: () => step(-1), n: () => turn(1), p: () => turn(-1), "/": () => byId("b-search").focus() };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  });
  byId("browser").hidden = false;
  changePage();
}

startTheme();
startCopying();
startNavigation();
startWhatIf();
startBrowser();
