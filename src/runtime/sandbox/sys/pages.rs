//! Memory that a process of this program holds and does not need for itself.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// Whether the relocated constants are mapped from a file, here and in every process that was forked since.
static SHARED: AtomicBool = AtomicBool::new(false);

/// Addresses from a start on, whole pages.
#[derive(Debug, Clone, Copy)]
struct Pages {
    start: usize,
    length: usize,
}

impl Pages {
    /// The pages that hold any of these addresses.
    fn around(start: usize, end: usize) -> Self {
        let page = rustix::param::page_size();
        let start = start / page * page;
        Self { start, length: end.next_multiple_of(page) - start }
    }

    /// The pages from that of the first address to the last one that holds nothing else.
    fn up_to(start: usize, end: usize) -> Self {
        let page = rustix::param::page_size();
        let start = start / page * page;
        Self { start, length: (end / page * page).saturating_sub(start) }
    }
}

/// Segments of an object that is loaded.
#[derive(Debug, Default)]
struct Segments {
    /// Code and constants, mapped from a file and never written.
    unwritten: Vec<Pages>,
    /// Constants that hold addresses: written by the loader, then closed by it (`PT_GNU_RELRO`).
    relocated: Option<Pages>,
}

/// The segments of all objects that are loaded, the program first.
fn objects() -> Vec<Segments> {
    unsafe extern "C" fn look(object: *mut libc::dl_phdr_info, _size: usize, data: *mut libc::c_void) -> i32 {
        // SAFETY: dl_iterate_phdr passes a valid object, whose headers are as many as it says, and the list below.
        let (base, headers, found) = unsafe {
            let object = &*object;
            let headers = std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum));
            (object.dlpi_addr, headers, &mut *data.cast::<Vec<Segments>>())
        };
        let mut segments = Segments::default();
        for header in headers {
            let start = (base + header.p_vaddr) as usize;
            let end = start + header.p_memsz as usize;
            match header.p_type {
                libc::PT_LOAD if header.p_flags & libc::PF_W == 0 => segments.unwritten.push(Pages::around(start, end)),
                libc::PT_GNU_RELRO => segments.relocated = Some(Pages::up_to(start, end)),
                _ => {}
            }
        }
        found.push(segments);
        0
    }
    let mut found: Vec<Segments> = Vec::new();
    // SAFETY: the callback is given the list, which outlives the call, and keeps nothing.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut found).cast()) };
    found
}

/// Puts this program's relocated constants into a file in memory that nobody can write. A fork then copies none of them, and
/// a process holds those that it looks at: they are over a megabyte, all of which the loader has written to.
///
/// To be called where there is one thread.
///
/// # Errors
/// There is no memory, or no such files here; nothing changed then.
pub fn share_constants() -> io::Result<()> {
    let pages = objects().into_iter().next().and_then(|program| program.relocated);
    let Some(Pages { start, length }) = pages.filter(|pages| pages.length > 0) else { return Ok(()) };
    let file = memfd_create("keel-constants", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(file);
    // SAFETY: the loader mapped these pages, and made them readable alone once it had written them.
    file.write_all(unsafe { std::slice::from_raw_parts(start as *const u8, length) })?;
    fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
    // SAFETY: the same bytes come into the place of the pages, at once for all who look at them, and can't be written, as
    // before.
    let mapped = unsafe { libc::mmap(start as *mut _, length, libc::PROT_READ, flags, file.as_raw_fd(), 0) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    SHARED.store(true, Ordering::Relaxed);
    Ok(())
}

/// Gives up the pages of this program's code and constants that are in memory; what is needed is mapped again, from the
/// page cache. A process that mostly waits then holds next to nothing.
pub fn release_code() {
    let mut objects = objects();
    // Elsewhere what the loader has written is in this process alone, and would be lost.
    let constants = objects.first_mut().and_then(|program| program.relocated.take());
    let constants = constants.filter(|_| SHARED.load(Ordering::Relaxed));
    for pages in objects.iter().flat_map(|object| &object.unwritten).chain(&constants) {
        // SAFETY: these pages are mapped from a file and were never written, so what is dropped is read again as it was.
        unsafe { libc::madvise(pages.start as *mut _, pages.length, libc::MADV_DONTNEED) };
    }
}

/// Gives back what was allocated and is not needed any more. Without it the C library keeps the most that was ever needed.
pub fn release_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: only memory that nothing has allocated is concerned.
    unsafe {
        libc::malloc_trim(0);
    }
}
