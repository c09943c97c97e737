//! What standard error can show, by the usual conventions.
//!
//! - `NO_COLOR` (not empty) switches colours off, whatever else is set.
//! - `CLICOLOR_FORCE` (neither empty nor 0) switches them on even without a terminal; `CLICOLOR=0` switches them off.
//! - A dumb terminal (`TERM=dumb`) gets neither colours nor a bar, which it would print line after line.

use std::io::IsTerminal;

/// What may be written to standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    pub colors: bool,
    /// Whether a line can be redrawn.
    pub moves_cursor: bool,
}

impl Terminal {
    /// Examine standard error and the environment.
    pub fn detect() -> Self {
        Self::of(std::io::stderr().is_terminal(), |name| {
            std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
        })
    }

    fn of(is_terminal: bool, variable: impl Fn(&str) -> Option<String>) -> Self {
        let is_set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
        let is_zero = |name: &str| variable(name).is_some_and(|value| value == "0");
        let is_dumb = variable("TERM").is_some_and(|value| value == "dumb");
        let colors = if is_set("NO_COLOR") {
            false
        } else if is_set("CLICOLOR_FORCE") && !is_zero("CLICOLOR_FORCE") {
            true
        } else {
            is_terminal && !is_dumb && !is_zero("CLICOLOR")
        };
        Self { colors, moves_cursor: is_terminal && !is_dumb }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_the_bar_follow_the_conventions() {
        for (is_terminal, variables, colors, moves_cursor) in [
            (true, &[][..], true, true),
            (false, &[], false, false),
            (true, &[("NO_COLOR", "1")], false, true),
            (true, &[("NO_COLOR", "")], true, true),
            (true, &[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")], false, true),
            (false, &[("CLICOLOR_FORCE", "1")], true, false),
            (false, &[("CLICOLOR_FORCE", "0")], false, false),
            (true, &[("CLICOLOR", "0")], false, true),
            (true, &[("TERM", "dumb")], false, false),
            (true, &[("TERM", "xterm-256color")], true, true),
        ] {
            let variable = |name: &str| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            let found = Terminal::of(is_terminal, variable);
            assert_eq!(found, Terminal { colors, moves_cursor }, "{is_terminal} {variables:?}");
        }
    }
}
