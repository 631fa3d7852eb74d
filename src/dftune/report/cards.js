"use strict";
// What the browser inside a report and the served one share. Everything from the data goes through textContent.
const cards = (() => {
  const NOT_CORRECT = "not correct";

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
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

  function card(question, blocks) {
    const article = make("article", "question");
    const header = make("header");
    header.append(make("p", "problem", question.problem));
    const target = make("p", "target", "Reference answer ");
    target.append(make("b", "", question.target), " ", make("span", "id", question.id));
    header.append(target);
    const answers = make("div", "answers");
    answers.append(...blocks);
    article.append(header, answers);
    return article;
  }

  function labelled(controls, text, element) {
    const label = make("label", "", text);
    label.append(element);
    controls.append(label);
    return element;
  }

  function fill(select, options) {
    select.replaceChildren(
      ...options.map(([value, shown]) => {
        const option = make("option", "", shown);
        option.value = value;
        return option;
      }),
    );
  }

  function choice(controls, text, options, onChange) {
    const select = labelled(controls, text, make("select"));
    fill(select, options);
    select.addEventListener("change", () => onChange(select.value));
    return select;
  }

  function outcomeOptions(outcomes) {
    const rest = outcomes.filter((name) => name !== "correct");
    return [["", "any"], ...["correct", NOT_CORRECT, ...rest].map((name) => [name, name])];
  }

  return { NOT_CORRECT, make, answerBlock, card, labelled, fill, choice, outcomeOptions };
})();
