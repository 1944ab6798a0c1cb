"""Completion in a shell: `eval "$(smalti completion bash)"`. The shell asks the command for what can come next."""

from smalti.core.config import did_you_mean
from smalti.core.errors import UsageError
from smalti.help import Flag, Page, take_help
from smalti.help_pages import read_pages

_SHELLS = {
    # Without a candidate, `-o default` completes names of files. `cut` takes the texts away, which bash cannot show.
    "bash": r"""
_smalti() {
    local IFS=$'\n'
    COMPREPLY=($(smalti --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null | cut -f1))
}
complete -o default -F _smalti smalti
""",
    "zsh": r"""
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
_smalti() {
    local -a found
    found=("${(@f)$(smalti --complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    found=("${(@)found/$'\t'/:}")
    if [[ -n $found[1] ]]; then _describe smalti found; else _files; fi
}
compdef _smalti smalti
""",
    "fish": r"""
function __smalti_complete
    set -l typed (commandline -opc)
    set -l last (commandline -ct)
    smalti --complete $typed[2..-1] "$last" 2>/dev/null
end
complete -c smalti -a '(__smalti_complete)'
""",
}
_PLACES = {
    "bash": 'eval "$(smalti completion bash)" in ~/.bashrc',
    "zsh": 'eval "$(smalti completion zsh)" in ~/.zshrc',
    "fish": "smalti completion fish | source in ~/.config/fish/config.fish",
}


def completion(arguments: list[str]) -> str:
    """The script that makes a shell complete the commands of smalti; on `--help`, where it goes.

    Raises:
        UsageError: there is none for the shell.
    """
    if take_help(list(arguments)) is not None:
        return "\n".join([f"usage: smalti completion {'|'.join(_SHELLS)}\n", *_PLACES.values()])
    name = arguments[0] if len(arguments) == 1 else ""
    if name not in _SHELLS:
        what = f"no completion for '{' '.join(arguments)}'" if arguments else "no shell given"
        raise UsageError(what, cause=did_you_mean(name, list(_SHELLS)), fix=f"there are: {', '.join(_SHELLS)}")
    return f"# {_PLACES[name]}{_SHELLS[name]}"


def candidates(words: list[str]) -> str:
    """What can stand in the place of the last word, a line each: the text, a tabulator, what it is.

    Args:
        words: what is typed after `smalti`; the last one may be a part of a word, or empty.
    """
    *before, last = words or [""]
    found = _next(before, last, read_pages())
    return "\n".join(f"{name}\t{text}".rstrip() for name, text in found.items() if name.startswith(last))


def _next(before: list[str], last: str, pages: dict[str, Page]) -> dict[str, str]:
    if not before:
        verbs = {name: page.about for name, page in pages.items() if " " not in name}
        return verbs | {"completion": "a script that makes a shell complete these", "--help": "", "--version": ""}
    page = pages.get(" ".join(before[:2])) or pages.get(before[0])
    if before == ["completion"]:
        return dict.fromkeys(_SHELLS, "")
    if page is None:
        return {}
    by_name = {f"--{flag.name}": flag for flag in page.flags if not flag.is_argument}
    if before[-1] in by_name and (choices := _choices(by_name[before[-1]])):
        return dict.fromkeys(choices, "")
    if last.startswith("-"):
        return {name: flag.text for flag in by_name.values() for name in _spellings(flag)} | {
            "--help": "this verb's flags"
        }
    recipes = {name.split()[1]: "" for name in pages if name.startswith(f"{before[0]} ")}
    return recipes if len(before) == 1 else {}


def _choices(flag: Flag) -> list[str]:
    words = flag.values.removesuffix(" ...").split("|")
    return words if len(words) > 1 and not any(word.isupper() or " " in word for word in words) else []


def _spellings(flag: Flag) -> list[str]:
    before, dot, last = flag.name.rpartition(".")
    off = [f"--{before}{dot}no-{last}"] if not flag.values and flag.default else []
    return [f"--{flag.name}", *off]
