// Asks for confirmation before a preset is deleted. `chosen` are the names of the presets that are chosen in this tab
// and in the other tab. Returns the names to send to the server. If the user cancels, the first name is empty. Built-in
// presets are sent without a question, because the server refuses to delete them.
function demofusionConfirmDelete(chosen, [builtIn, question]) {
    const translated = (window.localization ?? {})[question] ?? question;
    const [preset, ...others] = chosen;
    return builtIn.includes(preset) || confirm(`${translated} ${preset}`) ? chosen : ["", ...others];
}

// Makes an accordion usable with the keyboard. In gradio 3, its header reacts only to the mouse, so this function makes
// the triangle in the header a button. (In gradio 4, the header is a button already.) A click on the triangle also
// reaches the header, which then opens or closes the accordion.
function demofusionMakeOperable(header) {
    const triangle = header.querySelector(".icon");
    if (header.tagName === "BUTTON" || !triangle) {
        return;
    }
    const update = () => triangle.setAttribute("aria-expanded", header.classList.contains("open"));
    triangle.tabIndex = 0;
    triangle.setAttribute("role", "button");
    triangle.setAttribute("aria-label", header.textContent.replace(triangle.textContent, "").trim());
    triangle.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") {
            event.preventDefault();
            triangle.click();
        }
    });
    new MutationObserver(update).observe(header, {attributes: true, attributeFilter: ["class"]});
    update();
}

// Applies the text in a dropdown with custom values when the dropdown loses the focus. gradio 3 applies it only when a
// key is released: after pasting with the mouse, the dropdown would show the new text but keep the old value. The
// simulated event names no key, because the key Enter would select a suggestion.
function demofusionTakeTyped(input) {
    input.addEventListener("blur", () => {
        input.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}));
    });
}

// Ticks a hidden checkbox when the user clicks a preset, so that Python knows that the user has chosen it. gradio itself
// has no event for a click on the preset that is selected already.
function demofusionNotePick(preset) {
    preset.addEventListener("click", (event) => {
        const picked = gradioApp().querySelector(`#${preset.id}_picked input`);
        if (event.isTrusted && event.target.closest("label") && picked && !picked.checked) {
            picked.click();
        }
    });
}

// Calls a function once for each element, even if the webui runs this file twice because a second copy of the extension
// is installed.
function demofusionOnce(elements, set_up) {
    for (const element of elements) {
        if (!element.dataset.demofusion) {
            element.dataset.demofusion = "ready";
            set_up(element);
        }
    }
}

// Corrects the number in a field when the field loses the focus, and shows the correction below the field. A number
// outside the limits becomes the nearest limit, and steps and pixels are rounded to whole numbers. (gradio's sliders
// would correct the number without a message.) An empty field gets back the value that it had before.
function demofusionCorrectNumber(box) {
    const block = box.closest(".block");
    let before = box.value;
    box.addEventListener("focus", () => {
        before = box.value;
        block.querySelector(".demofusion-corrected")?.remove();
    });
    // with `capture`, this listener runs before the listener of gradio
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
    // the webui's shortcut for Generate, Ctrl+Enter, does not move the focus away from the field, so this line does
    box.addEventListener("keydown", (event) => event.key === "Enter" && box.blur());
}

// Repeats DemoFusion's messages about the last run above the tab's gallery, for example that it was stopped. The webui
// shows them only in small print below the image. During the next run, no messages are shown.
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
            // a size at the end gets a node of its own, so that the webui can translate the text before it
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
