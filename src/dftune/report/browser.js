"use strict";
// Filter and search over the completions. Everything from the data goes through textContent.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 10;
  const MOST_PAIRS = 4;
  const OUTCOMES = ["correct", "wrong", "format failure", "truncated", "repetition loop", "empty", "scored", "ungraded"];
  const NOT_CORRECT = "not correct";
  const list = document.getElementById("questions");
  const controls = document.getElementById("controls");
  const found = document.getElementById("found");
  const more = document.getElementById("more");
  const state = { benchmark: data.benchmarks[0], seed: 0, search: "", wanted: data.conditions.map(() => ""), shown: PAGE };

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

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

  function answerBlock(condition, answer) {
    const block = make("div", "answer");
    const who = make("p", "who");
    who.append(make("span", `key s${condition.style}`), condition.label);
    block.append(who);
    if (!answer) {
      block.append(make("p", "extracted", "Not evaluated"));
      return block;
    }
    who.append(make("span", `chip o-${answer.outcome.replace(" ", "-")}`, answer.outcome));
    block.append(make("pre", "", answer.completion));
    const extracted = make("p", "extracted");
    if (answer.answer === null) extracted.append("No answer found");
    else extracted.append("Answer ", make("b", "", answer.answer));
    const details = [answer.tokens === null ? "" : `${answer.tokens} tokens`, answer.outcome === "correct" ? "" : answer.reason];
    const rest = details.filter(Boolean).join(", ");
    if (rest) extracted.append(` \u00b7 ${rest}`);
    block.append(extracted);
    return block;
  }

  function card(question) {
    const article = make("article", "question");
    const header = make("header");
    header.append(make("p", "problem", question.problem));
    const target = make("p", "target", "Reference answer ");
    target.append(make("b", "", question.target), " ", make("span", "id", question.id));
    header.append(target);
    const answers = make("div", "answers");
    data.conditions.forEach((condition, index) => {
      if (question.answers[index].length) answers.append(answerBlock(condition, answerOf(question, index)));
    });
    article.append(header, answers);
    return article;
  }

  function draw() {
    const matching = selected(state.wanted, state.search);
    const total = data.questions.filter((question) => question.benchmark === state.benchmark).length;
    list.replaceChildren(...matching.slice(0, state.shown).map(card));
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

  function labelled(text, element) {
    const label = make("label", "", text);
    label.append(element);
    controls.append(label);
    return element;
  }

  function choice(text, options, onChange) {
    const select = labelled(text, make("select"));
    for (const [value, shown] of options) {
      const option = make("option", "", shown);
      option.value = value;
      select.append(option);
    }
    select.addEventListener("change", () => {
      onChange(select.value);
      changed();
    });
    return select;
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
    const options = [["", "any"], ...[...OUTCOMES.slice(0, 1), NOT_CORRECT, ...OUTCOMES.slice(1)].map((name) => [name, name])];
    const select = choice(condition.label, options, (value) => { state.wanted[index] = value; });
    refreshers.push(() => { select.value = state.wanted[index]; });
  });
  const search = labelled("Search", make("input"));
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
