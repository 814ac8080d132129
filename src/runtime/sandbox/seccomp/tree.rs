//! Decisions by the number of a system call alone, as a search tree. The kernel runs a filter for every number there is
//! when it is installed, to remember what is always allowed; a chain of some hundred comparisons makes that the dearest
//! step of a start.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// Loads the word at an offset of `seccomp_data` (seccomp(2)): `BPF_LD | BPF_W | BPF_ABS`.
const LOAD: u16 = 0x20;
/// Jumps where the loaded word is at least a constant: `BPF_JMP | BPF_JGE | BPF_K`.
const JUMP_AT_LEAST: u16 = 0x35;
/// Ends with a constant: `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;
/// Offset of the number in `seccomp_data`.
const NUMBER: u32 = 0;
/// `SECCOMP_RET_ALLOW`.
const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_ERRNO`, whose low half is the error.
const ERRNO: u32 = 0x0005_0000;

/// What becomes of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is let through.
    Allow,
    /// It fails with this error, of errno(3).
    Fail(u16),
}

impl Decision {
    fn value(self) -> u32 {
        match self {
            Self::Allow => ALLOW,
            Self::Fail(error) => ERRNO | u32::from(error),
        }
    }
}

/// A program that decides so about each number, and `otherwise` about all others. It does not look at the architecture,
/// whose numbers these are; another program has to.
///
/// # Errors
/// The numbers lie in too many pieces for the jumps of such a program.
pub fn compile(decisions: &BTreeMap<u32, Decision>, otherwise: Decision) -> Result<BpfProgram, String> {
    let mut program = vec![sock_filter { code: LOAD, jt: 0, jf: 0, k: NUMBER }];
    program.extend(search(&ranges(decisions, otherwise))?);
    Ok(program)
}

/// The first number of each range with one decision, in order; the last range has no end.
fn ranges(decisions: &BTreeMap<u32, Decision>, otherwise: Decision) -> Vec<(u32, Decision)> {
    let mut ranges = vec![(0, otherwise)];
    let mut begin = |at: u32, decision: Decision| match ranges.last_mut() {
        Some((_, last)) if *last == decision => {}
        Some((start, last)) if *start == at => *last = decision,
        _ => ranges.push((at, decision)),
    };
    for (number, decision) in decisions {
        begin(*number, *decision);
        if !decisions.contains_key(&(number + 1)) {
            begin(number + 1, otherwise);
        }
    }
    ranges
}

fn search(ranges: &[(u32, Decision)]) -> Result<BpfProgram, String> {
    let [below @ .., _] = ranges else { return Ok(Vec::new()) };
    if below.is_empty() {
        return Ok(ranges.iter().map(|(_, one)| sock_filter { code: RETURN, jt: 0, jf: 0, k: one.value() }).collect());
    }
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let Some((middle, _)) = upper.first() else { return Ok(Vec::new()) };
    let (lower, upper) = (search(lower)?, search(upper)?);
    let jump = u8::try_from(lower.len()).map_err(|_| "system calls are decided about in too many pieces".to_owned())?;
    let node = sock_filter { code: JUMP_AT_LEAST, jt: jump, jf: 0, k: *middle };
    Ok([vec![node], lower, upper].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a program says of a number, as the kernel would run it.
    fn run(program: &BpfProgram, number: u32) -> u32 {
        let (mut at, mut steps) = (1, 0);
        loop {
            let one = &program[at];
            steps += 1;
            match one.code {
                RETURN => return one.k,
                JUMP_AT_LEAST => at += 1 + usize::from(if number >= one.k { one.jt } else { one.jf }),
                other => panic!("{other}"),
            }
            assert!(steps < 12, "a tree is not deep");
        }
    }

    #[test]
    fn every_number_is_decided_about_as_listed() {
        let odd = |number: &u32| number % 7 != 3 && !number.is_multiple_of(11);
        let decide = |number: u32| if number.is_multiple_of(5) { Decision::Fail(1) } else { Decision::Allow };
        let decisions: BTreeMap<u32, Decision> = (0..400).filter(odd).map(|number| (number, decide(number))).collect();
        let program = compile(&decisions, Decision::Fail(38)).unwrap();
        for number in (0..1000).chain([0x4000_0000, u32::MAX]) {
            let expected = decisions.get(&number).copied().unwrap_or(Decision::Fail(38));
            assert_eq!(run(&program, number), expected.value(), "{number}");
        }
    }

    #[test]
    fn what_is_alike_is_one_range() {
        let decisions = (3..=9).map(|number| (number, Decision::Allow)).collect();
        let found = ranges(&decisions, Decision::Fail(38));
        assert_eq!(found, [(0, Decision::Fail(38)), (3, Decision::Allow), (10, Decision::Fail(38))]);
        assert_eq!(compile(&decisions, Decision::Fail(38)).unwrap().len(), 6);
        let all = [(0, Decision::Allow), (1, Decision::Fail(1))].into();
        assert_eq!(ranges(&all, Decision::Allow), [(0, Decision::Allow), (1, Decision::Fail(1)), (2, Decision::Allow)]);
    }

    #[test]
    fn more_pieces_than_jumps_reach_are_an_error() {
        let decisions = (0..1000).step_by(2).map(|number| (number, Decision::Allow)).collect();
        assert!(compile(&decisions, Decision::Fail(38)).is_err());
    }
}
