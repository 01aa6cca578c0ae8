//! The few calls that the standard library does not offer.

use std::io::{self, ErrorKind};
use std::os::raw::{c_int, c_short, c_ulong, c_void};

#[repr(C)]
#[derive(Clone)]
struct PollFd {
    fd: c_int,
    events: c_short,
    revents: c_short,
}

extern "C" {
    fn poll(fds: *mut PollFd, count: c_ulong, timeout: c_int) -> c_int;
    fn signal(number: c_int, handler: usize) -> usize;
    #[link_name = "read"]
    fn read_raw(fd: c_int, buffer: *mut c_void, count: usize) -> isize;
    #[link_name = "write"]
    fn write_raw(fd: c_int, buffer: *const c_void, count: usize) -> isize;
    #[link_name = "close"]
    fn close_raw(fd: c_int) -> c_int;
    fn umask(mask: u32) -> u32;
    fn dup2(from: c_int, to: c_int) -> c_int;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
}

const POLLIN: c_short = 1;
const SIG_IGN: usize = 1;
const IGNORED: [c_int; 6] = [1, 2, 3, 13, 15, 25]; // HUP INT QUIT PIPE TERM XFSZ
const F_GETFL: c_int = 3;
const F_SETFL: c_int = 4;
const O_NONBLOCK: c_int = 0o4000; // the same on x86_64, aarch64 and riscv64

/// Whoever stops our service or closes our terminal must not take a guest's log away.
pub fn ignore_signals() {
    for number in IGNORED {
        unsafe { signal(number, SIG_IGN) };
    }
}

/// Logs are 0640 whatever we inherited, so that an administrator's group can read them.
pub fn set_umask() {
    unsafe { umask(0o027) };
}

/// Two keepers on one pipe (a revival that raced) must not wait for each other's bytes.
pub fn set_nonblocking(fd: c_int) -> io::Result<()> {
    let flags = unsafe { fcntl(fd, F_GETFL) };
    if flags < 0 || unsafe { fcntl(fd, F_SETFL, flags | O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Tell the starter that every stream is open, then point output and errors to standard input,
/// which is /dev/null: the starter sees the end of the pipe.
pub fn say_ready() {
    unsafe {
        write_raw(1, b"ok\n".as_ptr().cast(), 3);
        dup2(0, 1);
        dup2(0, 2);
    }
}

/// Which of `fds` have something to read, or have ended. Negative ones never do.
pub fn wait_readable(fds: &[c_int], timeout: c_int) -> Vec<bool> {
    let mut polled: Vec<PollFd> =
        fds.iter().map(|&fd| PollFd { fd, events: POLLIN, revents: 0 }).collect();
    let found = unsafe { poll(polled.as_mut_ptr(), polled.len() as c_ulong, timeout) };
    polled.iter().map(|p| found > 0 && p.revents != 0).collect()
}

pub fn read(fd: c_int, buffer: &mut [u8]) -> io::Result<usize> {
    let n = unsafe { read_raw(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(n as usize)
}

pub fn close(fd: c_int) {
    unsafe { close_raw(fd) };
}

pub fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
