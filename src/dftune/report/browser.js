// Filter and search over the completions that a report holds; stands after cards.js.
(() => {
  const { NOT_CORRECT, make, answerBlock, card, labelled, outcomeOptions } = cards;
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 10;
  const MOST_PAIRS = 4;
  const list = document.getElementById("questions");
  const controls = document.getElementById("controls");
  const found = document.getElementById("found");
  const more = document.getElementById("more");
  const state = { benchmark: data.benchmarks[0], seed: 0, search: "", wanted: data.conditions.map(() => ""), shown: PAGE };

  function answerOf(question, condition) {
    const seeds = question.answers[condition];
    return seeds.length ? seeds[Math.min(state.seed, seeds.length - 1)] : null;
  }

  function fits(answer, wanted) {
    if (!wanted) return true;
    if (!answer) return false;
    return wanted === NOT_CORRECT ? answer.outcome !== "correct" : answer.outcome === wanted;
  }

  function textOf(question) {
    const answers = data.conditions.map((_, index) => answerOf(question, index)).filter(Boolean);
    return [question.id, question.problem, question.target, ...answers.map((answer) => answer.completion)].join("\n").toLowerCase();
  }

  function selected(wanted, search) {
    return data.questions.filter(
      (question) =>
        question.benchmark === state.benchmark &&
        wanted.every((outcome, index) => fits(answerOf(question, index), outcome)) &&
        (!search || textOf(question).includes(search)),
    );
  }

  function cardOf(question) {
    const shown = data.conditions.map((condition, index) => [condition, index]).filter(([, index]) => question.answers[index].length);
    return card(question, shown.map(([condition, index]) => answerBlock(condition, answerOf(question, index))));
  }

  function draw() {
    const matching = selected(state.wanted, state.search);
    const total = data.questions.filter((question) => question.benchmark === state.benchmark).length;
    list.replaceChildren(...matching.slice(0, state.shown).map(cardOf));
    found.textContent = matching.length
      ? `${matching.length} of ${total} questions match; showing ${Math.min(state.shown, matching.length)}.`
      : `None of ${total} questions match.`;
    more.hidden = state.shown >= matching.length;
    for (const refresh of refreshers) refresh();
  }

  const refreshers = [];

  function changed() {
    state.shown = PAGE;
    draw();
  }

  function choice(text, options, onChange) {
    return cards.choice(controls, text, options, (value) => {
      onChange(value);
      changed();
    });
  }

  function preset(box, text, wanted) {
    const button = make("button");
    button.type = "button";
    button.addEventListener("click", () => {
      state.wanted = wanted.slice();
      changed();
    });
    refreshers.push(() => {
      button.textContent = `${text} (${selected(wanted, state.search).length})`;
      button.setAttribute("aria-pressed", String(wanted.every((outcome, index) => outcome === state.wanted[index])));
    });
    box.append(button);
  }

  function rightAndNot(one, other) {
    if (!one.details || one.details !== other.details) return `${one.label} right, ${other.label} not`;
    return `${one.details}: ${one.name} right, ${other.name} not`;
  }

  function presets() {
    const box = make("div", "presets");
    const none = data.conditions.map(() => "");
    preset(box, "All", none);
    const compared = data.conditions.map((condition, index) => [index, condition.reference]).filter((pair) => pair[1] !== null);
    for (const pair of compared.slice(0, MOST_PAIRS)) {
      for (const [right, wrong] of [pair, pair.slice().reverse()]) {
        const wanted = none.slice();
        wanted[right] = "correct";
        wanted[wrong] = NOT_CORRECT;
        preset(box, rightAndNot(data.conditions[right], data.conditions[wrong]), wanted);
      }
    }
    controls.append(box);
  }

  presets();
  if (data.benchmarks.length > 1) {
    choice("Benchmark", data.benchmarks.map((name) => [name, name]), (value) => { state.benchmark = value; });
  }
  if (data.num_seeds > 1) {
    const seeds = Array.from({ length: data.num_seeds }, (_, index) => [String(index), `${index + 1} of ${data.num_seeds}`]);
    choice("Replicate", seeds, (value) => { state.seed = Number(value); });
  }
  data.conditions.forEach((condition, index) => {
    const select = choice(condition.label, outcomeOptions(data.outcomes), (value) => { state.wanted[index] = value; });
    refreshers.push(() => { select.value = state.wanted[index]; });
  });
  const search = labelled(controls, "Search", make("input"));
  search.type = "search";
  search.addEventListener("input", () => {
    state.search = search.value.trim().toLowerCase();
    changed();
  });
  controls.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    state.shown += PAGE;
    draw();
  });
  controls.hidden = false;
  found.hidden = false;
  draw();
})();
