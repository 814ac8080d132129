//! What is wrong with source files, in one line each.

use crate::status::ProblemView;

use super::output::note;

/// `FILE:LINE:COLUMN: PATH: MESSAGE; HELP (EFFECT)`, the order that compilers made editors understand.
pub fn line(problem: &ProblemView) -> String {
    let ProblemView { file, line, column, path, message, help, effect } = problem;
    let mut text = format!("{file}:{line}:{column}: ");
    if !path.is_empty() {
        text.push_str(&format!("{path}: "));
    }
    text.push_str(message);
    if let Some(help) = help {
        text.push_str(&format!("; {help}"));
    }
    if !effect.is_empty() {
        text.push_str(&format!(" ({effect})"));
    }
    super::text::harmless(&text)
}

/// Tells every problem on standard error, and what that means.
pub fn report(problems: &[ProblemView], consequence: &str) {
    for problem in problems {
        note(format_args!("error: {}", line(problem)));
    }
    note(format_args!("error: {} found; {consequence}", super::text::count(problems.len(), "problem")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_with_place_help_and_effect() {
        let problem = ProblemView {
            file: "specs/web.yaml".to_owned(),
            line: 3,
            column: 5,
            path: "services.web.image".to_owned(),
            message: "is missing".to_owned(),
            help: Some("write image: {name: ...}".to_owned()),
            effect: "the last good version keeps running".to_owned(),
        };
        assert_eq!(
            line(&problem),
            "specs/web.yaml:3:5: services.web.image: is missing; write image: {name: ...} (the last good version keeps running)"
        );
    }
}
