// Lists the controls and labels of the panel that are cut off or covered, and the labels that take several lines. Also
// reports a panel that is wider than the page.
panel => {
    const problems = [], root = document.querySelector(`${panel}_enabled`);
    const shown = (node) => node.getClientRects().length > 0 && getComputedStyle(node).visibility === "visible";
    const inside = (inner, outer) => inner.left >= outer.left - 1 && inner.right <= outer.right + 1
        && inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1;
    const apart = (a, b) => a.right <= b.left + 1 || b.right <= a.left + 1
        || a.bottom <= b.top + 1 || b.bottom <= a.top + 1;
    const name = (node) => {
        const block = node.closest("[id^=script_]") ?? node;
        return `${block.id.split("_hires_").pop()} ${node.tagName} ${node.type ?? ""}`;
    };
    const controls = [...root.querySelectorAll("input, textarea, button")].filter(shown);
    const texts = [...root.querySelectorAll("[data-testid=block-info]")].filter(shown);
    for (const node of [...controls, ...texts]) {
        const box = node.getBoundingClientRect();
        for (let outer = node.parentElement; outer !== root.parentElement; outer = outer.parentElement) {
            const row = outer.matches(".form, .block, fieldset, .gap");
            if (row && !inside(box, outer.getBoundingClientRect())) {
                problems.push(`${name(node)} is outside ${outer.id || outer.className}`);
                break;
            }
        }
    }
    const boxes = controls.map((node) => node.getBoundingClientRect());
    controls.forEach((node, i) => controls.slice(i + 1).forEach((other, j) => {
        // in gradio 4 the title of an accordion is a button, which contains the webui's checkbox
        const overlap = !node.contains(other) && !apart(boxes[i], boxes[i + 1 + j]);
        if (overlap) problems.push(`${name(node)} overlaps ${name(other)}`);
    }));
    for (const text of texts) {
        const range = document.createRange();
        range.selectNodeContents(text);
        for (const box of range.getClientRects()) {
            controls.forEach((node, i) => apart(box, boxes[i]) || problems.push(`${name(node)} covers ${text.innerText}`));
        }
        const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
        if (lines.size > 1) problems.push(`${text.innerText} has ${lines.size} lines`);
    }
    for (const node of controls) {
        node.scrollIntoView({block: "center", behavior: "instant"});
        const box = node.getBoundingClientRect();
        const found = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
        if (!found || !(node.contains(found) || found.contains(node))) {
            problems.push(`${name(node)} is covered by ${found ? found.id || found.className : "nothing"}`);
        }
    }
    const right = Math.max(...[root, ...controls].map((node) => node.getBoundingClientRect().right));
    if (right > document.documentElement.clientWidth) problems.push(`the panel ends at ${right}`);
    return problems;
}
