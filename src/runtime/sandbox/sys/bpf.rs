//! Programs that decide about devices, attached to control groups of version 2: bpf(2).

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Commands, kinds and flags of linux/bpf.h.
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// The part of `union bpf_attr` that loading reads.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The part that attaching reads.
#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Has a program decide about devices for the processes of a group, which is given as its open directory, and those
/// below. It goes with the group.
///
/// # Errors
/// What bpf(2) reports: `EPERM` without CAP_BPF or CAP_SYS_ADMIN, `EINVAL` where the kernel has no such programs.
pub fn attach_device_program(group: BorrowedFd<'_>, code: &[u64]) -> io::Result<()> {
    let license = c"MIT OR Apache-2.0";
    // SAFETY: all-zero is a valid value of a structure of plain integers.
    let mut load: Load = unsafe { zeroed() };
    load.prog_type = TYPE_CGROUP_DEVICE;
    load.insn_cnt = u32::try_from(code.len()).map_err(io::Error::other)?;
    load.insns = code.as_ptr().addr() as u64;
    load.license = license.as_ptr().addr() as u64;
    // SAFETY: the structure has the size that is passed; code and licence outlive the call, which only reads them.
    let program = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    let program = RawFd::try_from(program).map_err(io::Error::other)?;
    if program < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel returned a descriptor that nothing else owns.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    let attach = Attach {
        target_fd: group.as_raw_fd().cast_unsigned(),
        attach_bpf_fd: program.as_raw_fd().cast_unsigned(),
        attach_type: ATTACH_CGROUP_DEVICE,
        // Besides programs of those who own the groups above.
        attach_flags: ALLOW_MULTI,
    };
    // SAFETY: the structure has the size that is passed, and both descriptors are open.
    let attached = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attach, size_of::<Attach>()) };
    if attached == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
