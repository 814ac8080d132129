//! Hostile input is refused in bounded time and memory.

use evenkeel::spec::{MAX_DEPTH, MAX_FILE_SIZE, MAX_NODES, MAX_PROBLEMS, parse};

fn only_problem(text: &str) -> String {
    let file = parse(text);
    assert_eq!(file.documents, []);
    assert_eq!(file.problems.len(), 1, "{:?}", &file.problems[..2.min(file.problems.len())]);
    file.problems[0].to_string()
}

/// Each list holds nine times the one before: 9^9 values in 300 bytes.
#[test]
fn an_alias_bomb_is_refused() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..=8 {
        let before = format!("*a{}", level - 1);
        text += &format!("a{level}: &a{level} [{}]\n", [before.as_str(); 9].join(", "));
    }
    let problem = only_problem(&text);
    assert!(problem.contains(&format!("more than {MAX_NODES} values")), "{problem}");
}

#[test]
fn merge_keys_count_against_the_same_bound() {
    let mut text = String::from("base: &base {");
    text.extend((0..5000).map(|i| format!("k{i}: 1, ")));
    text += "}\nmany:\n";
    text.extend((0..1000).map(|_| "  - { <<: *base }\n"));
    let problem = only_problem(&text);
    assert!(problem.contains("more than"), "{problem}");
}

#[test]
fn deep_nesting_is_refused() {
    for open in ["[", "{a: ", "- ", "? ", "[{a: "] {
        let problem = only_problem(&open.repeat(20_000));
        assert!(problem.contains("nested deeper than") || problem.contains("not valid YAML"), "{open}: {problem}");
    }
    let deep = format!("x-deep: {}{}", "[".repeat(MAX_DEPTH + 1), "]".repeat(MAX_DEPTH + 1));
    assert!(only_problem(&deep).contains("nested deeper than"));
}

#[test]
fn nesting_by_aliases_counts_too() {
    let mut text = String::from("a0: &a0 [x]\n");
    for level in 1..=MAX_DEPTH {
        text += &format!("a{level}: &a{level} [*a{}]\n", level - 1);
    }
    assert!(only_problem(&text).contains("nested deeper than"));
}

#[test]
fn an_alias_inside_of_its_own_value_is_refused() {
    assert!(only_problem("a: &a [*a]").contains("stands inside of what it stands for"));
    assert!(only_problem("a: *nowhere").contains("not valid YAML"));
}

#[test]
fn a_large_file_is_read_up_to_the_bound() {
    let service = |index: usize| format!("  s{index}: {{ image: {{ name: nginx }}, env: {{ A: 1, B: two }} }}\n");
    let mut text = String::from("version: v1\ndeployment: large\nservices:\n");
    let mut index = 0;
    while text.len() + 100 < MAX_FILE_SIZE {
        text += &service(index);
        index += 1;
    }
    let file = parse(&text);
    assert_eq!(file.problems, []);
    text.push_str(&"#".repeat(MAX_FILE_SIZE));
    assert!(only_problem(&text).contains("bytes; at most"));
}

#[test]
fn a_file_full_of_mistakes_lists_the_first() {
    let mut text = String::from("version: v1\ndeployment: large\nservices:\n");
    text.extend((0..5000).map(|i| format!("  s{i}: {{ imgae: {{ name: nginx }}, replcia: 3 }}\n")));
    let file = parse(&text);
    assert_eq!(file.problems.len(), MAX_PROBLEMS + 1);
    assert!(file.problems[MAX_PROBLEMS].message.contains("more problems"), "{}", file.problems[MAX_PROBLEMS]);
}
