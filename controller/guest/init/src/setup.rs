//! From a bare kernel to a root file system with everything mounted, and back down again.

use crate::sys::{self, MNT_DETACH, MS_NOATIME, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY};
use std::fs::{self, File, OpenOptions};
use std::io::{Error, Read, Write};
use std::os::unix::fs::{symlink, OpenOptionsExt};

pub const ROOT: &str = "/newroot";
const CGROUP: &str = "/sys/fs/cgroup/workload";

/// What went wrong and where: becomes an ERROR report.
pub struct Fault {
    pub errno: i32,
    pub what: String,
}

impl Fault {
    pub fn at(what: impl Into<String>) -> impl FnOnce(Error) -> Fault {
        let what = what.into();
        move |err| Fault {
            errno: err.raw_os_error().unwrap_or(0),
            what: format!("{}: {}", what, err),
        }
    }
}

/// A line on the console. A console that does not take it is no reason to stop.
pub fn say(line: String) {
    let _ = std::io::stderr().write_all((line + "\n").as_bytes());
}

pub fn warn(what: impl std::fmt::Display) {
    say(format!("torpor-init: {}", what));
}

/// Our own streams on the console, without ever waiting for it.
pub fn console() {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(sys::O_NONBLOCK | sys::O_NOCTTY);
    if let Ok(console) = options.open("/dev/console") {
        for fd in 0..3 {
            let _ = sys::redirect(&console, fd);
        }
    }
}

/// Mount, and go on without it where the kernel lacks it: the workload may never ask.
fn try_mount(kind: &str, to: &str, flags: u64, data: &str) {
    let made = fs::create_dir_all(to);
    if let Err(err) = made.and_then(|_| sys::mount_at(kind, to, kind, flags, data)) {
        warn(format!("mount {}: {}", to, err));
    }
}

const QUIET: u64 = MS_NOSUID | MS_NODEV | MS_NOEXEC;

/// The kernel's interfaces below `root`: kind, place, flags, options.
const INTERFACES: [(&str, &str, u64, &str); 4] = [
    ("devtmpfs", "/dev", MS_NOSUID, "mode=0755"),
    ("proc", "/proc", QUIET, ""),
    ("sysfs", "/sys", QUIET, ""),
    ("cgroup2", "/sys/fs/cgroup", QUIET, ""),
];

/// What only the workload needs.
const EXTRAS: [(&str, &str, u64, &str); 4] = [
    ("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777"),
    ("mqueue", "/dev/mqueue", QUIET, ""),
    ("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755"),
];

fn mount_all(root: &str, table: &[(&str, &str, u64, &str)]) {
    for (kind, place, flags, options) in table {
        try_mount(kind, &format!("{}{}", root, place), *flags, options);
    }
}

/// What init itself needs; before this there is not even a console.
pub fn kernel_interfaces() {
    mount_all("", &INTERFACES);
    if let Err(err) = fs::write("/sys/class/net/lo/flags", "0x1") {
        warn(format!("loopback up: {}", err));
    }
}

/// The modules named in /modules/order, one file name a line.
pub fn modules() {
    let order = fs::read_to_string("/modules/order").unwrap_or_default();
    for name in order.lines().filter(|name| !name.is_empty()) {
        let loaded =
            File::open(format!("/modules/{}", name)).and_then(|file| sys::load_module(&file));
        match loaded {
            Err(err) if err.raw_os_error() != Some(17) => warn(format!("module {}: {}", name, err)),
            _ => (),
        }
    }
}

/// The device file of the disk with this serial.
pub fn disk(serial: &str) -> Result<String, Fault> {
    let found =
        fs::read_dir("/sys/block").map_err(Fault::at("/sys/block"))?.flatten().find(|entry| {
            let said = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
            said.trim_end() == serial
        });
    match found {
        Some(entry) => Ok(format!("/dev/{}", entry.file_name().to_string_lossy())),
        None => Err(Fault { errno: sys::ENOENT, what: format!("no disk with serial {}", serial) }),
    }
}

/// At most `limit` bytes from the start of a file or device.
pub fn head(path: &str, limit: u64) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes));
    read.map_err(Fault::at(path))?;
    Ok(bytes)
}

/// The image read-only, the overlay disk above it, the kernel's interfaces inside.
pub fn root_file_system() -> Result<(), Fault> {
    let (rootfs, overlay) = (disk("rootfs")?, disk("overlay")?);
    for dir in ["/lower", "/upper", ROOT] {
        fs::create_dir_all(dir).map_err(Fault::at(dir))?;
    }
    sys::mount_at(&rootfs, "/lower", "erofs", MS_RDONLY, "").map_err(Fault::at("mount rootfs"))?;
    sys::mount_at(&overlay, "/upper", "ext4", MS_NOATIME, "")
        .map_err(Fault::at("mount overlay"))?;
    for dir in ["/upper/upper", "/upper/work"] {
        fs::create_dir_all(dir).map_err(Fault::at(dir))?;
    }
    let layers = "lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work";
    sys::mount_at("overlay", ROOT, "overlay", 0, layers).map_err(Fault::at("mount overlayfs"))?;
    mount_all(ROOT, &INTERFACES);
    mount_all(ROOT, &EXTRAS);
    for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        let _ = symlink(format!("/proc/self/fd{}", target), format!("{}/dev/{}", ROOT, name));
    }
    Ok(())
}

/// The workload's cgroup: killed whole when memory runs out, so that the cause can be told.
pub fn cgroup() {
    let threads = fs::read_to_string("/proc/sys/kernel/threads-max").unwrap_or_default();
    let most = threads.trim().parse::<u64>().unwrap_or(4096) * 9 / 10;
    let _ = fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory +pids");
    let _ = fs::create_dir(CGROUP);
    for (name, value) in [("memory.oom.group", "1".to_string()), ("pids.max", most.to_string())] {
        if let Err(err) = fs::write(format!("{}/{}", CGROUP, name), value) {
            warn(format!("cgroup {}: {}", name, err));
        }
    }
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
}

pub fn join_cgroup() {
    let _ = fs::write(format!("{}/cgroup.procs", CGROUP), "0");
    let _ = fs::write("/proc/self/oom_score_adj", "0");
}

/// How many processes of the workload the kernel has killed for want of memory.
pub fn oom_kills() -> u64 {
    let events = fs::read_to_string(format!("{}/memory.events", CGROUP)).unwrap_or_default();
    let line = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

/// Everything the workload left: its cgroup in one stroke, then whoever moved out of it.
pub fn kill_all() {
    let _ = fs::write(format!("{}/cgroup.kill", CGROUP), "1");
    sys::send_signal(-1, sys::SIGKILL);
}

/// Write back, unmount what can be, and switch the machine off.
pub fn power_off() -> ! {
    sys::sync_disks();
    for (_, place, _, _) in INTERFACES.iter().chain(&EXTRAS).rev() {
        let _ = sys::unmount(&format!("{}{}", ROOT, place), MNT_DETACH);
    }
    let clean = sys::unmount(ROOT, 0).and_then(|_| sys::unmount("/upper", 0));
    if clean.is_err() {
        let _ = fs::write("/proc/sysrq-trigger", "u"); // remount everything read-only
    }
    sys::power_off()
}
