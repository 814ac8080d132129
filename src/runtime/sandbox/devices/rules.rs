//! Which devices may be opened for what: the list that the kernel keeps an instance to, as version 1 of control groups
//! reads it and as a program of version 2. Pure.

use serde::{Deserialize, Serialize};

/// One device, or all of one driver, and what may be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Kind.
    pub kind: DeviceKind,
    /// Number of the driver.
    pub major: u32,
    /// Number of the device; all of the driver when absent.
    pub minor: Option<u32>,
    /// Whether it may be read.
    pub read: bool,
    /// Whether it may be written.
    pub write: bool,
}

/// Kind of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// Character device.
    Character,
    /// Block device.
    Block,
}

/// What every instance may use (devices.txt of Linux): null, zero, full, random, urandom, tty, ptmx and terminals.
const USUAL: &[(u32, Option<u32>)] =
    &[(1, Some(3)), (1, Some(5)), (1, Some(7)), (1, Some(8)), (1, Some(9)), (5, Some(0)), (5, Some(2)), (136, None)];

/// What an instance may use in all: the usual devices, and these. What is named here is not allowed more by being usual.
pub fn allowed(declared: &[DeviceRule]) -> Vec<DeviceRule> {
    let usual = USUAL.iter().map(|(major, minor)| DeviceRule {
        kind: DeviceKind::Character,
        major: *major,
        minor: *minor,
        read: true,
        write: true,
    });
    let is_declared = |rule: &DeviceRule| {
        declared.iter().any(|one| (one.kind, one.major, one.minor) == (rule.kind, rule.major, rule.minor))
    };
    usual.filter(|rule| !is_declared(rule)).chain(declared.iter().copied()).collect()
}

impl std::fmt::Display for DeviceRule {
    /// As version 1 reads it: `c 1:3 rw`. Nodes may be made, as they can't be opened where an instance can make them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            DeviceKind::Character => 'c',
            DeviceKind::Block => 'b',
        };
        let minor = self.minor.map_or_else(|| "*".to_owned(), |minor| minor.to_string());
        let (read, write) = (if self.read { "r" } else { "" }, if self.write { "w" } else { "" });
        write!(f, "{kind} {}:{minor} {read}{write}m", self.major)
    }
}

/// Kinds and kinds of access of `bpf_cgroup_dev_ctx` (linux/bpf.h).
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const READ: i32 = 2;
const WRITE: i32 = 4;

/// Operations of eBPF (linux/bpf.h, the instruction set's documentation) that the program is made of.
const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const JUMP_UNLESS_EQUAL: u8 = 0x56;
const EXIT: u8 = 0x95;

/// One instruction, as the kernel reads it.
const fn instruction(operation: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    let registers = (from << 4) | to;
    (operation as u64)
        | ((registers as u64) << 8)
        | ((offset.cast_unsigned() as u64) << 16)
        | ((value.cast_unsigned() as u64) << 32)
}

/// The program that answers whether an access is allowed. Registers: 1 is what is asked, then scratch; 2 kind; 3 access;
/// 4 and 5 numbers; 0 the answer.
pub fn program(rules: &[DeviceRule]) -> Vec<u64> {
    let mut code = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE_REGISTER, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        // Making a node is no access.
        instruction(AND, 3, 0, 0, READ | WRITE),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    // Nothing but making a node.
    code.extend([
        instruction(JUMP_UNLESS_EQUAL, 3, 0, 2, 0),
        instruction(MOVE, 0, 0, 0, 1),
        instruction(EXIT, 0, 0, 0, 0),
    ]);
    for rule in rules {
        code.extend(one(rule));
    }
    code.extend([instruction(MOVE, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    code
}

/// Allows what a rule allows, and goes on otherwise.
fn one(rule: &DeviceRule) -> Vec<u64> {
    let kind = match rule.kind {
        DeviceKind::Character => CHARACTER,
        DeviceKind::Block => BLOCK,
    };
    let refused = (if rule.read { 0 } else { READ }) | (if rule.write { 0 } else { WRITE });
    let mut tests = vec![(2, kind), (4, rule.major.cast_signed())];
    tests.extend(rule.minor.map(|minor| (5, minor.cast_signed())));
    // Each test, the two instructions of the access, its jump, and the two of the answer.
    let length = tests.len() + 2 + 1 + 2;
    let after = |index: usize| i16::try_from(length - index - 1).unwrap_or_default();
    let mut code = Vec::with_capacity(length);
    for (register, value) in tests {
        code.push(instruction(JUMP_UNLESS_EQUAL, register, 0, after(code.len()), value));
    }
    code.push(instruction(MOVE_REGISTER, 1, 3, 0, 0));
    code.push(instruction(AND, 1, 0, 0, refused));
    code.push(instruction(JUMP_UNLESS_EQUAL, 1, 0, after(code.len()), 0));
    code.push(instruction(MOVE, 0, 0, 0, 1));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(kind: DeviceKind, numbers: (u32, Option<u32>), read: bool, write: bool) -> DeviceRule {
        DeviceRule { kind, major: numbers.0, minor: numbers.1, read, write }
    }

    /// Runs a program as the kernel does: those instructions that programs here are made of.
    fn answer(code: &[u64], kind: i32, access: i32, numbers: (u32, u32)) -> u32 {
        let asked = [((access << 16) | kind).cast_unsigned(), numbers.0, numbers.1];
        let (mut registers, mut next) = ([0_u32; 6], 0_usize);
        loop {
            let word = code[next];
            let [operation, both, ..] = word.to_le_bytes();
            let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
            let offset = ((word >> 16) & 0xffff) as u16 as i16;
            let value = (word >> 32) as u32;
            next += 1;
            match operation {
                LOAD_WORD => registers[to] = asked[usize::try_from(offset).unwrap() / 4],
                AND => registers[to] &= value,
                SHIFT_RIGHT => registers[to] >>= value,
                MOVE => registers[to] = value,
                MOVE_REGISTER => registers[to] = registers[from],
                JUMP_UNLESS_EQUAL if registers[to] != value => next += usize::try_from(offset).unwrap(),
                JUMP_UNLESS_EQUAL => {}
                EXIT => return registers[0],
                _ => panic!("{operation:x}"),
            }
        }
    }

    #[test]
    fn a_program_allows_what_the_rules_say_and_nothing_else() {
        let disk = rule(DeviceKind::Block, (8, Some(1)), true, false);
        let code = program(&allowed(&[disk, rule(DeviceKind::Character, (195, None), true, true)]));
        const MAKE: i32 = 1;
        for (kind, access, numbers, expected) in [
            (CHARACTER, READ, (1, 3), 1),
            (CHARACTER, READ | WRITE, (1, 3), 1),
            (CHARACTER, READ, (1, 1), 0),
            (CHARACTER, WRITE, (136, 7), 1),
            (BLOCK, READ, (1, 3), 0),
            (BLOCK, READ, (8, 1), 1),
            (BLOCK, WRITE, (8, 1), 0),
            (BLOCK, READ | WRITE, (8, 1), 0),
            (BLOCK, READ, (8, 0), 0),
            (CHARACTER, READ | WRITE, (195, 255), 1),
            (BLOCK, MAKE, (8, 0), 1),
            (BLOCK, MAKE | READ, (8, 0), 0),
        ] {
            assert_eq!(answer(&code, kind, access, numbers), expected, "{kind} {access} {numbers:?}");
        }
    }

    #[test]
    fn rules_read_as_version_1_takes_them() {
        let told = |rule: DeviceRule| rule.to_string();
        assert_eq!(told(rule(DeviceKind::Character, (1, Some(3)), true, true)), "c 1:3 rwm");
        assert_eq!(told(rule(DeviceKind::Block, (8, None), true, false)), "b 8:* rm");
        assert_eq!(told(rule(DeviceKind::Block, (8, Some(0)), false, false)), "b 8:0 m");
    }

    #[test]
    fn a_usual_device_is_limited_where_it_is_declared_with_less() {
        let less = rule(DeviceKind::Character, (1, Some(7)), true, false);
        let rules = allowed(&[less]);
        assert_eq!(rules.iter().filter(|rule| (rule.major, rule.minor) == (1, Some(7))).collect::<Vec<_>>(), [&less]);
    }
}
