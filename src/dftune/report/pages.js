// All completions, a page at a time from the server; stands after cards.js.
(() => {
  const { NOT_CORRECT, make, answerBlock, card, labelled, fill, choice, outcomeOptions } = cards;
  const NAMES = ["A", "B"];
  const WAIT_MS = 250; // after the last key before a search is sent
  const [list, controls, found, pager] = ["questions", "controls", "found", "pager"].map((id) => document.getElementById(id));
  const state = { sources: ["", ""], wanted: ["", ""], search: "", start: 0 };
  const presets = [];
  let asked = 0;

  async function answer(path) {
    const response = await fetch(path);
    const value = await response.json();
    if (!response.ok) throw new Error(value.error);
    return value;
  }

  async function load() {
    asked += 1;
    const mine = asked;
    const [first, second] = state.sources;
    const [first_wanted, second_wanted] = state.wanted;
    const query = new URLSearchParams({ first, second, first_wanted, second_wanted, search: state.search, start: state.start });
    list.setAttribute("aria-busy", "true");
    try {
      const page = await answer(`/completions/page?${query}`);
      if (mine === asked) draw(page);
    } catch (error) {
      if (mine === asked) found.textContent = error.message;
    }
    if (mine === asked) list.removeAttribute("aria-busy");
  }

  function draw(page) {
    const { rows, num, num_fitting: fitting, start, size } = page;
    state.start = start;
    const labels = selects.map((select) => select.selectedOptions[0].textContent);
    list.replaceChildren(
      ...rows.map((row) =>
        card(row, row.answers.map((given, index) => answerBlock({ label: `${NAMES[index]}: ${labels[index]}`, style: index + 1 }, given))),
      ),
    );
    const shown = `${(start + 1).toLocaleString("en")} to ${(start + rows.length).toLocaleString("en")} of ${fitting.toLocaleString("en")}`;
    const all = fitting === num ? "" : ` that match, of ${num.toLocaleString("en")}`;
    found.textContent = fitting ? `Completions ${shown}${all}` : `None of ${num.toLocaleString("en")} completions match.`;
    drawPager(Math.floor(start / size) + 1, Math.ceil(fitting / size), size);
    for (const [button, wanted] of presets) {
      button.setAttribute("aria-pressed", String(wanted.every((outcome, index) => outcome === state.wanted[index])));
      button.disabled = wanted[1] !== "" && !state.sources[1];
    }
    wants.forEach((select, index) => { select.value = state.wanted[index]; });
    wants[1].disabled = !state.sources[1];
  }

  function drawPager(page, pages, size) {
    const go = (target) => {
      state.start = (Math.min(Math.max(target, 1), pages) - 1) * size;
      load().then(() => controls.scrollIntoView());
    };
    const button = (text, target) => {
      const made = make("button", "", text);
      made.type = "button";
      made.disabled = target < 1 || target > pages;
      made.addEventListener("click", () => go(target));
      return made;
    };
    const number = make("input");
    Object.assign(number, { type: "number", min: 1, max: pages, value: page });
    number.setAttribute("aria-label", "Page");
    number.addEventListener("change", () => go(Number(number.value) || 1));
    const where = make("label", "", "Page ");
    where.append(number, ` of ${pages.toLocaleString("en")}`);
    pager.replaceChildren(button("Previous", page - 1), where, button("Next", page + 1));
    pager.hidden = pages < 2;
  }

  function changed() {
    state.start = 0;
    load();
  }

  function preset(box, text, wanted) {
    const button = make("button", "", text);
    button.type = "button";
    button.addEventListener("click", () => {
      state.wanted = wanted.slice();
      changed();
    });
    presets.push([button, wanted]);
    box.append(button);
  }

  const selects = [];
  const wants = [];

  function offer(benchmark) {
    const options = benchmark.sources.map((source) => [source.id, source.label]);
    state.sources = [options[0][0], options.length > 1 ? options[1][0] : ""];
    fill(selects[0], options);
    fill(selects[1], [...options, ["", "none"]]);
    selects.forEach((select, index) => { select.value = state.sources[index]; });
    if (!state.sources[1]) state.wanted = ["", ""];
  }

  function build({ benchmarks, outcomes }) {
    const box = make("div", "presets");
    preset(box, "All", ["", ""]);
    preset(box, "A right, B not", ["correct", NOT_CORRECT]);
    preset(box, "B right, A not", [NOT_CORRECT, "correct"]);
    preset(box, "Neither right", [NOT_CORRECT, NOT_CORRECT]);
    controls.append(box);
    const names = benchmarks.map(({ name }) => [name, name]);
    choice(controls, "Benchmark", names, (value) => {
      offer(benchmarks.find(({ name }) => name === value));
      changed();
    });
    NAMES.forEach((name, index) => {
      selects.push(choice(controls, name, [], (value) => {
        state.sources[index] = value;
        if (!state.sources[1]) state.wanted[1] = "";
        changed();
      }));
      wants.push(choice(controls, `${name} is`, outcomeOptions(outcomes), (value) => {
        state.wanted[index] = value;
        changed();
      }));
    });
    const search = labelled(controls, "Search", make("input"));
    search.type = "search";
    let timer = 0;
    search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        state.search = search.value;
        changed();
      }, WAIT_MS);
    });
    controls.addEventListener("submit", (event) => event.preventDefault());
    offer(benchmarks[0]);
    controls.hidden = false;
    load();
  }

  answer("/completions/files").then(
    (files) => {
      if (files.benchmarks.length) build(files);
      else found.textContent = "There are no completions yet.";
    },
    (error) => { found.textContent = error.message; },
  );
})();
