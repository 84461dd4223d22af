// Which two arms are drawn in front of the others.
for (const figure of document.querySelectorAll("[data-focus]")) {
  const plot = figure.querySelector(".plot"), selects = [...figure.querySelectorAll("select")], keys = figure.querySelectorAll("[data-key]");
  const show = () => {
    const chosen = selects.map((select) => select.value);
    const groups = new Map([...plot.querySelectorAll("g.arm")].map((group) => [group.dataset.arm, group]));
    for (const group of groups.values()) group.classList.remove("first", "second");
    [...chosen].reverse().forEach((arm) => {
      const group = groups.get(arm);
      group.classList.add(arm === chosen[0] ? "first" : "second");
      group.parentNode.append(group);
      keys[chosen.indexOf(arm)].classList.toggle("alone", group.classList.contains("alone"));
    });
    plot.dataset.front = JSON.stringify(selects.map((select) => select.selectedOptions[0].textContent));
  };
  selects.forEach((select) => select.addEventListener("change", show));
  show();
}

// Two pictures of a sample on each other, the left one cut off at the divider.
const grid = document.querySelector("[data-grid]");
if (grid) {
  const slider = grid.querySelector("#grid-at"), left = grid.querySelector("#grid-left"), right = grid.querySelector("#grid-right");
  const move = () => {
    grid.style.setProperty("--at", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", `${left.selectedOptions[0].textContent} ${slider.value} %, ${right.selectedOptions[0].textContent} ${100 - slider.value} %`);
  };
  const say = (place, image) => {
    const note = document.createElement("b");
    note.textContent = image?.dataset.note ?? "";
    place.replaceChildren(image ? `${image.dataset.label} ` : "not drawn", note);
  };
  const choose = () => {
    for (const pair of grid.querySelectorAll(".pair")) {
      const images = [...pair.querySelectorAll("img")];
      const one = images.find((image) => image.dataset.key === left.value), other = images.find((image) => image.dataset.key === right.value);
      for (const image of images) {
        image.hidden = image !== one && image !== other;
        image.classList.toggle("left", image === one && one !== other);
        image.classList.toggle("right", image === other);
      }
      say(pair.querySelector("figcaption .left"), one);
      say(pair.querySelector("figcaption .right"), other);
    }
    move();
  };
  slider.addEventListener("input", move);
  left.addEventListener("change", choose);
  right.addEventListener("change", choose);
  for (const stack of grid.querySelectorAll(".stack")) {
    const follow = (event) => {
      const box = stack.getBoundingClientRect();
      slider.value = Math.round(100 * (event.clientX - box.left) / box.width);
      move();
    };
    stack.addEventListener("pointerdown", (event) => { stack.setPointerCapture(event.pointerId); follow(event); event.preventDefault(); });
    stack.addEventListener("pointermove", (event) => { if (stack.hasPointerCapture(event.pointerId)) follow(event); });
  }
  choose();
}
