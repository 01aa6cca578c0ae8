//! Starting the workload: everything between the mounted root and exec, and what an end means.

use crate::config::Config;
use crate::identity::{self, small_file};
use crate::setup::{self, ROOT};
use crate::sys;
use crate::users::{self, Identity};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Start it; gives its pid. An Err is how it ended instead.
pub fn start(config: &Config, output: &File) -> std::result::Result<i32, Exit> {
    let name = String::from_utf8_lossy(&config.argv[0]);
    let identity = sys::within(ROOT, || furnish(config)).and_then(|furnished| furnished);
    let identity = identity.map_err(|err| Exit::refused(126, err.to_string()))?;
    sys::give(output, identity.uid, identity.gid); // so that /dev/stdout can be opened again
    spawn(config, identity, output).map_err(|err| {
        let code = if err.kind() == ErrorKind::NotFound { 127 } else { 126 };
        Exit::refused(code, format!("exec {:?}: {}", name, err))
    })
}

/// Inside the root, as root: what the workload must find there, and who it will be.
fn furnish(config: &Config) -> Result<Identity> {
    identity::write(config);
    let workdir = directory(config);
    fs::create_dir_all(workdir).map_err(|err| {
        Error::new(err.kind(), format!("working directory {:?}: {}", workdir, err))
    })?;
    let user = String::from_utf8_lossy(&config.user);
    users::resolve(&user, &small_file("/etc/passwd"), &small_file("/etc/group"))
        .map_err(|what| Error::new(ErrorKind::Other, what))
}

/// Command forks, lets SIGPIPE kill again and tells us the errno of what fails. We exec ourselves:
/// libc's would hand a program of a foreign machine to a shell.
fn spawn(config: &Config, identity: Identity, output: &File) -> Result<i32> {
    let env = environment(config, &identity);
    let (argv, workdir) = (config.argv.clone(), directory(config).to_os_string());
    let mut command = Command::new("workload");
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
    let become_it = move || {
        sys::new_session();
        sys::unblock_signals();
        setup::join_cgroup();
        sys::enter_root(ROOT)?;
        std::env::set_current_dir(&workdir)?;
        sys::limit_files(1024, 524_288);
        sys::become_user(identity.uid, identity.gid, &identity.groups)?;
        Err(exec(&argv, &env))
    };
    // SAFETY: this program has one thread, so that its child may allocate and open
    unsafe { command.pre_exec(become_it) };
    command.spawn().map(|child| child.id() as i32)
}

fn directory(config: &Config) -> &OsStr {
    OsStr::from_bytes(if config.workdir.is_empty() { b"/" } else { &config.workdir })
}

/// Comes back only with the reason why not.
fn exec(argv: &[Vec<u8>], env: &[Vec<u8>]) -> Error {
    let mut reason = Error::from_raw_os_error(sys::ENOENT);
    for path in candidates(&argv[0], env) {
        let err = sys::exec(&path, argv, env);
        if ![sys::ENOENT, sys::ENOTDIR].contains(&err.raw_os_error().unwrap_or(0)) {
            reason = err;
        }
    }
    reason
}

/// The image's variables as they are; PATH, HOME and HOSTNAME where it has none.
fn environment(config: &Config, identity: &Identity) -> Vec<Vec<u8>> {
    let mut env = config.env.clone();
    let defaults = [
        (&b"PATH="[..], DEFAULT_PATH),
        (b"HOME=", identity.home.as_bytes()),
        (b"HOSTNAME=", &config.hostname),
    ];
    for (name, value) in defaults {
        if !env.iter().any(|pair| pair.starts_with(name)) {
            env.push([name, value].concat());
        }
    }
    env
}

/// Where to look: the name itself if it has a slash, else every directory of PATH.
fn candidates(name: &[u8], env: &[Vec<u8>]) -> Vec<Vec<u8>> {
    if name.is_empty() || name.contains(&b'/') {
        return vec![name.to_vec()];
    }
    let path = env.iter().find_map(|pair| pair.strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH);
    path.split(|byte| *byte == b':')
        .map(|dir| [if dir.is_empty() { b"." } else { dir }, b"/", name].concat())
        .collect()
}

/// How the workload ended, as the EXIT report says it.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    pub code: i32, // 128 + signal where a signal ended it
    pub signal: i32,
    pub oom: bool,
    pub asked: bool, // after a request to shut down
    pub message: String,
}

impl Exit {
    fn refused(code: i32, message: String) -> Exit {
        Exit { code, signal: 0, oom: false, asked: false, message }
    }

    pub fn from_status(status: i32, oom_kills: u64, asked: bool) -> Exit {
        let signal = status & 0x7f;
        let code = if signal == 0 { (status >> 8) & 0xff } else { 128 + signal };
        let oom = signal == sys::SIGKILL && oom_kills > 0;
        Exit { code, signal, oom, asked, message: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_status_becomes_code_and_signal() {
        let exit = Exit::from_status(3 << 8, 0, false);
        assert_eq!((exit.code, exit.signal, exit.oom), (3, 0, false));
        let killed = Exit::from_status(9, 0, true);
        assert_eq!((killed.code, killed.signal, killed.oom, killed.asked), (137, 9, false, true));
        assert!(Exit::from_status(9, 2, false).oom);
        assert!(!Exit::from_status(137 << 8, 2, false).oom);
        assert_eq!(Exit::from_status(11 | 0x80, 0, false).signal, 11); // with a core dump
    }

    #[test]
    fn defaults_fill_only_what_is_missing() {
        let identity = Identity { uid: 0, gid: 0, groups: vec![], home: "/root".into() };
        let config = Config { env: vec![b"PATH=/x".to_vec(), b"A=".to_vec()], ..Config::default() };
        let env = environment(&config, &identity);
        assert_eq!(env, [&b"PATH=/x"[..], b"A=", b"HOME=/root", b"HOSTNAME="]);
    }

    #[test]
    fn path_look_up() {
        let env = vec![b"PATH=/a::/b".to_vec()];
        assert_eq!(candidates(b"sh", &env), [&b"/a/sh"[..], b"./sh", b"/b/sh"]);
        assert_eq!(candidates(b"bin/sh", &env), [b"bin/sh"]);
    }
}
