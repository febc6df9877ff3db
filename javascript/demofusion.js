// Asks before a preset is deleted; without a yes its name is not sent. The built-in ones are refused by the answer.
function demofusionConfirmDelete(chosen, [builtIn, question]) {
    const translated = (window.localization ?? {})[question] ?? question;
    const [preset, ...others] = chosen;
    return builtIn.includes(preset) || confirm(`${translated} ${preset}`) ? chosen : ["", ...others];
}
