//! The system calls that std does not offer, each behind a safe function. Nothing here decides.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::os::raw::{c_char, c_int, c_long, c_ulong};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::io::{AsRawFd, FromRawFd, RawFd};

extern "C" {
    fn mount(
        src: *const c_char,
        to: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_char,
    ) -> c_int;
    fn umount2(target: *const c_char, flags: c_int) -> c_int;
    fn fchdir(fd: c_int) -> c_int;
    fn chroot(path: *const c_char) -> c_int;
    fn unshare(flags: c_int) -> c_int;
    fn setsid() -> c_int;
    fn execve(path: *const c_char, argv: *const *const c_char, env: *const *const c_char) -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn setgroups(count: usize, groups: *const u32) -> c_int;
    fn setgid(gid: u32) -> c_int;
    fn setuid(uid: u32) -> c_int;
    fn setrlimit(resource: c_int, limit: *const [u64; 2]) -> c_int;
    fn fchown(fd: c_int, uid: u32, gid: u32) -> c_int;
    fn dup2(from: c_int, to: c_int) -> c_int;
    fn pipe2(fds: *mut c_int, flags: c_int) -> c_int;
    fn fcntl(fd: c_int, command: c_int, value: c_int) -> c_int;
    fn epoll_create1(flags: c_int) -> c_int;
    fn epoll_ctl(ep: c_int, op: c_int, fd: c_int, event: *mut EpollEvent) -> c_int;
    fn epoll_wait(ep: c_int, events: *mut EpollEvent, max: c_int, timeout: c_int) -> c_int;
    fn signalfd(fd: c_int, mask: *const SigSet, flags: c_int) -> c_int;
    fn sigprocmask(how: c_int, set: *const SigSet, old: *mut SigSet) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn clock_settime(clock: c_int, time: *const [i64; 2]) -> c_int;
    fn reboot(command: c_int) -> c_int;
    fn sync();
}

pub const ENOENT: i32 = 2;
pub const ENOTDIR: i32 = 20;
pub const MS_RDONLY: c_ulong = 1;
pub const MS_NOSUID: c_ulong = 2;
pub const MS_NODEV: c_ulong = 4;
pub const MS_NOEXEC: c_ulong = 8;
pub const MS_NOATIME: c_ulong = 1024;
pub const MS_MOVE: c_ulong = 8192;
pub const MNT_DETACH: c_int = 2;
pub const O_NONBLOCK: c_int = 0o4000;
pub const O_NOCTTY: c_int = 0o400;
pub const O_NOFOLLOW: c_int = if cfg!(target_arch = "aarch64") { 0o100000 } else { 0o400000 };
const O_CLOEXEC: c_int = 0o2000000;
pub const EPOLLIN: u32 = 1;
pub const EPOLLOUT: u32 = 4;
pub const EPOLLET: u32 = 1 << 31;
pub const SIGINT: i32 = 2;
pub const SIGKILL: i32 = 9;
pub const SIGUSR1: i32 = 10;
pub const SIGUSR2: i32 = 12;
pub const SIGTERM: i32 = 15;
pub const SIGCHLD: i32 = 17;
pub const SIGPWR: i32 = 30;

#[repr(C)]
#[cfg_attr(target_arch = "x86_64", repr(packed))]
#[derive(Clone, Copy)]
pub struct EpollEvent {
    pub events: u32,
    pub token: u64,
}

#[repr(C)]
struct SigSet([u64; 16]);

/// EINVAL.
pub fn invalid() -> Error {
    Error::from_raw_os_error(22)
}

fn text(value: impl AsRef<[u8]>) -> Result<CString> {
    CString::new(value.as_ref()).map_err(|_| invalid())
}

fn check(result: c_int) -> Result<c_int> {
    if result < 0 {
        return Err(Error::last_os_error());
    }
    Ok(result)
}

pub fn mount_at(src: &str, to: &str, kind: &str, flags: c_ulong, data: &str) -> Result<()> {
    let (src, to, kind, data) = (text(src)?, text(to)?, text(kind)?, text(data)?);
    // SAFETY: four NUL-terminated strings that outlive the call
    check(unsafe { mount(src.as_ptr(), to.as_ptr(), kind.as_ptr(), flags, data.as_ptr()) })?;
    Ok(())
}

pub fn unmount(target: &str, flags: c_int) -> Result<()> {
    let target = text(target)?;
    // SAFETY: a NUL-terminated string that outlives the call
    check(unsafe { umount2(target.as_ptr(), flags) })?;
    Ok(())
}

fn change_root(path: &str) -> Result<()> {
    let path = text(path)?;
    // SAFETY: a NUL-terminated string that outlives the call
    check(unsafe { chroot(path.as_ptr()) })?;
    std::env::set_current_dir("/")
}

/// Do `work` with `root` as "/", then come back: links in there lead nowhere else.
pub fn within<T>(root: &str, work: impl FnOnce() -> T) -> Result<T> {
    let home = File::open("/")?;
    change_root(root)?;
    let done = work();
    // SAFETY: the descriptor is open
    check(unsafe { fchdir(home.as_raw_fd()) })?;
    change_root(".")?;
    Ok(done)
}

/// In a mount namespace of our own, make `root` what "/" is.
pub fn enter_root(root: &str) -> Result<()> {
    // SAFETY: plain flags
    check(unsafe { unshare(0x0002_0000) })?; // CLONE_NEWNS
    std::env::set_current_dir(root)?;
    mount_at(".", "/", "", MS_MOVE, "")?;
    change_root(".")
}

pub fn new_session() {
    // SAFETY: no arguments
    unsafe { setsid() };
}

/// Replace this process. Returns only the error.
pub fn exec(path: &[u8], argv: &[Vec<u8>], env: &[Vec<u8>]) -> Error {
    let strings = |list: &[Vec<u8>]| list.iter().map(text).collect::<Result<Vec<CString>>>();
    let (path, argv, env) = match (text(path), strings(argv), strings(env)) {
        (Ok(path), Ok(argv), Ok(env)) => (path, argv, env),
        _ => return invalid(),
    };
    let ends = |list: &[CString]| -> Vec<*const c_char> {
        list.iter().map(|s| s.as_ptr()).chain(Some(std::ptr::null())).collect()
    };
    // SAFETY: NULL-terminated arrays of NUL-terminated strings that outlive the call
    unsafe { execve(path.as_ptr(), ends(&argv).as_ptr(), ends(&env).as_ptr()) };
    Error::last_os_error()
}

pub fn send_signal(pid: i32, number: i32) {
    // SAFETY: plain numbers; a process that is gone is no error for us
    unsafe { kill(pid, number) };
}

/// One child that ended: (pid, wait status). None: nobody now. An error: no child at all.
pub fn reap() -> Result<Option<(i32, i32)>> {
    let mut status = 0;
    // SAFETY: status outlives the call; 1 = WNOHANG
    let pid = check(unsafe { waitpid(-1, &mut status, 1) })?;
    Ok((pid > 0).then(|| (pid, status)))
}

pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Result<()> {
    // SAFETY: the slice outlives the call
    check(unsafe { setgroups(groups.len(), groups.as_ptr()) })?;
    // SAFETY: plain numbers
    check(unsafe { setgid(gid) })?;
    // SAFETY: plain numbers
    check(unsafe { setuid(uid) })?;
    Ok(())
}

/// Soft and hard limit of open files.
pub fn limit_files(soft: u64, hard: u64) {
    // SAFETY: the array has the layout of struct rlimit; 7 = RLIMIT_NOFILE
    unsafe { setrlimit(7, &[soft, hard]) };
}

pub fn give(file: &File, uid: u32, gid: u32) {
    // SAFETY: the descriptor is open
    unsafe { fchown(file.as_raw_fd(), uid, gid) };
}

pub fn redirect(file: &File, to: RawFd) -> Result<()> {
    // SAFETY: both are descriptors of this process
    check(unsafe { dup2(file.as_raw_fd(), to) })?;
    Ok(())
}

/// (read end, write end), both close-on-exec.
pub fn pipe() -> Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors, which become ours
    check(unsafe { pipe2(ends.as_mut_ptr(), O_CLOEXEC) })?;
    // SAFETY: fresh descriptors that nobody else owns
    Ok(unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) })
}

pub fn unblock_reads(file: &File) {
    // SAFETY: an open descriptor; 4 = F_SETFL, which keeps no other flag we use
    unsafe { fcntl(file.as_raw_fd(), 4, O_NONBLOCK) };
}

pub struct Epoll(File);

impl Epoll {
    pub fn new() -> Result<Self> {
        // SAFETY: a fresh descriptor that nobody else owns
        Ok(Epoll(unsafe { File::from_raw_fd(check(epoll_create1(O_CLOEXEC))?) }))
    }

    pub fn add(&self, file: &File, events: u32, token: u64) -> Result<()> {
        let mut event = EpollEvent { events, token };
        // SAFETY: both descriptors are open; 1 = EPOLL_CTL_ADD
        check(unsafe { epoll_ctl(self.0.as_raw_fd(), 1, file.as_raw_fd(), &mut event) })?;
        Ok(())
    }

    pub fn remove(&self, file: &File) {
        let mut event = EpollEvent { events: 0, token: 0 };
        // SAFETY: as above; 2 = EPOLL_CTL_DEL
        unsafe { epoll_ctl(self.0.as_raw_fd(), 2, file.as_raw_fd(), &mut event) };
    }

    /// Tokens that are ready. `timeout` in milliseconds, -1 for ever.
    pub fn wait(&self, timeout: i32) -> Vec<u64> {
        let mut events = [EpollEvent { events: 0, token: 0 }; 16];
        // SAFETY: room for 16 events
        let count = unsafe { epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), 16, timeout) };
        events.iter().take(count.max(0) as usize).map(|e| e.token).collect()
    }
}

/// Block these signals and read them from the returned file, 128 bytes each, the number first.
pub fn signals(numbers: &[i32]) -> Result<File> {
    let mut set = SigSet([0; 16]);
    for number in numbers {
        set.0[0] |= 1 << (number - 1);
    }
    // SAFETY: a sigset_t of 128 bytes, as glibc and musl have it; 0 = SIG_BLOCK
    check(unsafe { sigprocmask(0, &set, std::ptr::null_mut()) })?;
    // SAFETY: the same; a fresh descriptor that nobody else owns
    Ok(unsafe { File::from_raw_fd(check(signalfd(-1, &set, O_NONBLOCK | O_CLOEXEC))?) })
}

/// What a fresh program expects: nothing blocked. std inherits our mask since Rust 1.66.
pub fn unblock_signals() {
    // SAFETY: 2 = SIG_SETMASK with an empty set
    unsafe { sigprocmask(2, &SigSet([0; 16]), std::ptr::null_mut()) };
}

pub fn load_module(file: &File) -> Result<()> {
    const FINIT_MODULE: c_long = if cfg!(target_arch = "x86_64") { 313 } else { 273 };
    let nothing = text("")?;
    // SAFETY: an open descriptor, an empty parameter string, no flags
    let result = unsafe {
        syscall(FINIT_MODULE, c_long::from(file.as_raw_fd()), nothing.as_ptr(), 0 as c_long)
    };
    check(result as c_int)?;
    Ok(())
}

/// Set the wall clock, in nanoseconds since the epoch.
pub fn set_clock(wall: i64) -> Result<()> {
    let time = [wall / 1_000_000_000, wall % 1_000_000_000];
    // SAFETY: the array has the layout of struct timespec and outlives the call; 0 = CLOCK_REALTIME
    check(unsafe { clock_settime(0, &time) })?;
    Ok(())
}

/// Mix `seed` into the kernel's pool and make every generator start anew from it, now. A plain
/// write to the device would act some minutes later.
pub fn reseed(seed: &[u8]) -> Result<()> {
    const RNDADDENTROPY: c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: c_ulong = 0x5207;
    let device = OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open("/dev/urandom")?;
    let length = seed.len() as i32;
    let pool = [&(8 * length).to_ne_bytes()[..], &length.to_ne_bytes(), seed].concat();
    // SAFETY: the layout of struct rand_pool_info: bits, bytes, the bytes
    check(unsafe { ioctl(device.as_raw_fd(), RNDADDENTROPY, pool.as_ptr()) })?;
    // SAFETY: an open descriptor, no argument
    check(unsafe { ioctl(device.as_raw_fd(), RNDRESEEDCRNG) })?;
    Ok(())
}

pub fn sync_disks() {
    // SAFETY: no arguments
    unsafe { sync() };
}

pub fn power_off() -> ! {
    loop {
        // SAFETY: LINUX_REBOOT_CMD_POWER_OFF
        unsafe { reboot(0x4321_FEDC) };
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}
