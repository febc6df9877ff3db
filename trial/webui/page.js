// Stand-in for the webui's own scripts: only the functions that the extension and its panel use.
"use strict";

function gradioApp() {
    return document.querySelector("gradio-app")?.shadowRoot ?? document;
}

function updateInput(target) {
    target.dispatchEvent(new Event("input", {bubbles: true}));
}

const uiLoadedCallbacks = [];
const uiUpdateCallbacks = [];
const onUiLoaded = (callback) => uiLoadedCallbacks.push(callback);
const onUiUpdate = (callback) => uiUpdateCallbacks.push(callback);
const onAfterUiUpdate = onUiUpdate;

// Adds a checkbox to the header of an accordion. A hidden gradio checkbox contains the value that Python receives.
function setUpAccordion(accordion) {
    const header = accordion.querySelector(".label-wrap");
    const hidden = gradioApp().querySelector(`#${accordion.id}-checkbox input`);
    if (!header || !hidden || accordion.dataset.ready) {
        return;
    }
    accordion.dataset.ready = "yes";
    const box = document.createElement("input");
    box.type = "checkbox";
    box.id = `${accordion.id}-visible-checkbox`;
    box.className = "input-accordion-checkbox";
    box.checked = header.classList.contains("open");
    header.insertBefore(box, header.firstChild);

    const setValue = (checked) => {
        box.checked = checked;
        if (hidden.checked !== checked) {
            hidden.checked = checked;
            hidden.dispatchEvent(new Event("change", {bubbles: true}));
        }
    };
    // opening or closing the accordion changes the value, until you click the checkbox itself
    let linked = true;
    new MutationObserver(() => linked && setValue(header.classList.contains("open")))
        .observe(header, {attributes: true, attributeFilter: ["class"]});
    box.addEventListener("click", (event) => {
        event.stopPropagation();
        linked = false;
        setValue(box.checked);
    });
    accordion.setChecked = (checked) => {
        box.checked = checked;
        if (linked && header.classList.contains("open") !== checked) {
            header.click();
        }
    };
}

function inputAccordionChecked(id, checked) {
    gradioApp().getElementById(id)?.setChecked?.(checked);
}

let uiIsLoaded = false;
setInterval(() => {
    gradioApp().querySelectorAll(".input-accordion").forEach(setUpAccordion);
    if (!uiIsLoaded && gradioApp().querySelector("#txt2img_prompt")) {
        uiIsLoaded = true;
        uiLoadedCallbacks.forEach((callback) => callback());
    }
    uiUpdateCallbacks.forEach((callback) => callback());
}, 200);
