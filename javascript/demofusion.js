// Asks before a preset is deleted; without a yes its name is not sent. The built-in ones are refused by the answer.
function demofusionConfirmDelete(chosen, [builtIn, question]) {
    const translated = (window.localization ?? {})[question] ?? question;
    const [preset, ...others] = chosen;
    return builtIn.includes(preset) || confirm(`${translated} ${preset}`) ? chosen : ["", ...others];
}

// Lets the keyboard open and close an accordion, whose header gradio 3 makes for the mouse alone: its triangle becomes a
// button. (In gradio 4 the header is one.) A click on the triangle is one on the header.
function demofusionMakeOperable(header) {
    const triangle = header.querySelector(".icon");
    if (header.tagName === "BUTTON" || !triangle) {
        return;
    }
    const tell = () => triangle.setAttribute("aria-expanded", header.classList.contains("open"));
    triangle.tabIndex = 0;
    triangle.setAttribute("role", "button");
    triangle.setAttribute("aria-label", header.textContent.replace(triangle.textContent, "").trim());
    triangle.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") {
            event.preventDefault();
            triangle.click();
        }
    });
    new MutationObserver(tell).observe(header, {attributes: true, attributeFilter: ["class"]});
    tell();
}

// Takes what stands in a list that takes own values when the focus leaves it. gradio 3 does so at every key alone: what is
// pasted with the mouse would be shown, and the value of before used. (Enter would choose what the list proposes.)
function demofusionTakeTyped(input) {
    input.addEventListener("blur", () => {
        input.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}));
    });
}

// Ticks the hidden box that tells Python that somebody chose the preset, also where that preset was chosen already: gradio
// has no event for such a click.
function demofusionNotePick(preset) {
    preset.addEventListener("click", (event) => {
        const picked = gradioApp().querySelector(`#${preset.id}_picked input`);
        if (event.isTrusted && event.target.closest("label") && picked && !picked.checked) {
            picked.click();
        }
    });
}

// Calls a function once for each element, also where a second copy of the extension is installed and the webui runs this
// file twice.
function demofusionOnce(elements, set_up) {
    for (const element of elements) {
        if (!element.dataset.demofusion) {
            element.dataset.demofusion = "ready";
            set_up(element);
        }
    }
}

// Corrects the number in a box when the focus leaves it, and shows the correction below: an empty box gets its last value
// back, a number beyond the limits becomes the nearest one that is allowed, and a number of steps or pixels is rounded.
// (gradio's sliders only clamp, and show nothing.)
function demofusionCorrectNumber(box) {
    const block = box.closest(".block");
    let before = box.value;
    box.addEventListener("focus", () => {
        before = box.value;
        block.querySelector(".demofusion-corrected")?.remove();
    });
    // capture: before gradio's own listener
    box.addEventListener("blur", () => {
        const typed = box.value, clamped = Math.min(Math.max(Number(typed), box.min), box.max);
        const allowed = Number.isInteger(Number(box.step)) ? Math.round(clamped) : clamped;
        if (typed !== "" && allowed === Number(typed)) {
            return;
        }
        box.value = typed === "" ? before : allowed;
        updateInput(box);
        if (typed !== "") {
            const note = block.appendChild(document.createElement("div"));
            note.className = "demofusion-corrected demofusion-error";
            note.setAttribute("role", "status");
            note.textContent = `${typed} → ${allowed} (${box.min} - ${box.max})`;
        }
    }, {capture: true});
    // the webui's shortcut for Generate leaves the focus where it is
    box.addEventListener("keydown", (event) => event.key === "Enter" && box.blur());
}

// Repeats above a tab's gallery what DemoFusion says of the last run, such as that it was stopped: the webui shows it in
// small print below the image. While the next run shows its progress, nothing is repeated.
function demofusionRepeatMessages(tab) {
    const root = gradioApp(), log = root.querySelector(`#html_log_${tab}`), gallery = root.querySelector(`#${tab}_gallery`);
    if (!log || !gallery) {
        return;
    }
    const running = root.querySelector(`#${tab}_results .progressDiv`);
    const lines = running ? [] : log.innerText.split("\n").filter((line) => /^DemoFusion\b/.test(line.trim()));
    const said = lines.map((line) => line.trim()).join("\n");
    const shown = gallery.parentElement.querySelector(":scope > .demofusion-messages");
    if ((shown?.dataset.said ?? "") === said) {
        return;
    }
    shown?.remove();
    if (said) {
        const box = document.createElement("div");
        box.className = "demofusion-messages";
        box.dataset.said = said;
        box.setAttribute("role", "status");
        for (const line of said.split("\n")) {
            const paragraph = box.appendChild(document.createElement("p"));
            // in two pieces, of which the webui can translate the first
            for (const piece of line.split(/(?= \(\d+x\d+\)$)/)) {
                paragraph.appendChild(document.createElement("span")).textContent = piece;
            }
        }
        gallery.before(box);
    }
}

onAfterUiUpdate(() => ["txt2img", "img2img"].forEach(demofusionRepeatMessages));

onUiLoaded(() => {
    const panels = '[id^="script_"][id$="_demofusion_hires_enabled"]';
    demofusionOnce(gradioApp().querySelectorAll(`${panels} .secondary-wrap input`), demofusionTakeTyped);
    demofusionOnce(gradioApp().querySelectorAll(`${panels} input[type="number"]`), demofusionCorrectNumber);
    demofusionOnce(gradioApp().querySelectorAll(`${panels} .label-wrap`), demofusionMakeOperable);
    demofusionOnce(gradioApp().querySelectorAll(`${panels} [id$="_preset"]`), demofusionNotePick);
});
