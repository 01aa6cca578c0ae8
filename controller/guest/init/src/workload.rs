//! Starting the workload: everything between fork and exec, and what its end means.

use crate::config::Config;
use crate::setup::{self, join_cgroup};
use crate::sys;
use crate::users::{self, Identity};
use std::fs::{self, File, OpenOptions};
use std::io::{Error, Read, Write};
use std::os::unix::fs::OpenOptionsExt;

const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why the workload did not come to run: what a shell's exit code would be, and a sentence.
pub struct Refusal {
    pub code: i32,
    pub message: String,
}

fn refuse(what: impl std::fmt::Display) -> Refusal {
    Refusal { code: 126, message: what.to_string() }
}

/// Fork and exec. Gives the pid, and the refusal when exec did not come about (the child is then
/// a zombie to reap like any other).
pub fn start(config: &Config, output: &File) -> std::io::Result<(i32, Option<Refusal>)> {
    let (mut verdict, tell) = sys::pipe()?;
    if let Some(pid) = sys::fork_process()? {
        drop(tell);
        let mut said = Vec::new();
        verdict.read_to_end(&mut said)?;
        let refusal = said.split_first().map(|(code, message)| Refusal {
            code: i32::from(*code),
            message: String::from_utf8_lossy(message).into_owned(),
        });
        return Ok((pid, refusal));
    }
    drop(verdict);
    let refusal = child(config, output);
    let mut said = vec![refusal.code as u8];
    said.extend_from_slice(refusal.message.as_bytes());
    let _ = (&tell).write_all(&said);
    sys::exit_now(refusal.code)
}

/// In the child. Comes back only with the reason why not.
fn child(config: &Config, output: &File) -> Refusal {
    match prepare(config, output) {
        Ok(identity) => launch(config, &identity),
        Err(refusal) => refusal,
    }
}

fn prepare(config: &Config, output: &File) -> Result<Identity, Refusal> {
    sys::new_session();
    join_cgroup();
    sys::enter_root(setup::ROOT).map_err(|e| refuse(format!("enter the root: {}", e)))?;
    write_names(config);
    let spec = String::from_utf8_lossy(&config.user).into_owned();
    let identity = users::resolve(&spec, &account_file("/etc/passwd"), &account_file("/etc/group"))
        .map_err(refuse)?;
    let workdir = path_of(if config.workdir.is_empty() { b"/" } else { &config.workdir });
    fs::create_dir_all(&workdir)
        .and_then(|_| std::env::set_current_dir(&workdir))
        .map_err(|e| refuse(format!("working directory {:?}: {}", workdir, e)))?;
    sys::give(output, identity.uid, identity.gid); // so that /dev/stdout can be opened again
    redirect(output).map_err(|e| refuse(format!("standard streams: {}", e)))?;
    sys::limit_files(1024, 524_288);
    sys::become_user(identity.uid, identity.gid, &identity.groups)
        .map_err(|e| refuse(format!("become uid {}: {}", identity.uid, e)))?;
    sys::restore_signals();
    Ok(identity)
}

fn redirect(output: &File) -> std::io::Result<()> {
    sys::redirect(&File::open("/dev/null")?, 0)?;
    sys::redirect(output, 1)?;
    sys::redirect(output, 2)
}

/// Files that name this guest. New files, never through a link of the image.
fn write_names(config: &Config) {
    let name = String::from_utf8_lossy(&config.hostname).into_owned();
    let hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{}\n",
        name
    );
    let machine_id = format!("{}\n", String::from_utf8_lossy(&config.machine_id));
    let _ = fs::create_dir_all("/etc");
    let files = [("/etc/hostname", format!("{}\n", name)), ("/etc/hosts", hosts), ("/etc/machine-id", machine_id)];
    for (path, content) in files {
        if content == "\n" {
            continue;
        }
        let _ = fs::remove_file(path);
        let made = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
        if let Err(err) = made.and_then(|mut file| file.write_all(content.as_bytes())) {
            setup::warn(format!("{}: {}", path, err));
        }
    }
}

/// At most 1 MiB of a regular file; a pipe of that name must not hold us up.
fn account_file(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = OpenOptions::new().read(true).custom_flags(sys::O_NONBLOCK).open(path) {
        if file.metadata().map_or(false, |m| m.is_file()) {
            let _ = file.take(1 << 20).read_to_end(&mut bytes);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn path_of(bytes: &[u8]) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStrExt;
    std::path::PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

fn launch(config: &Config, identity: &Identity) -> Refusal {
    let env = environment(config, identity);
    let name = &config.argv[0];
    let mut verdict = Error::from_raw_os_error(sys::ENOENT);
    for path in candidates(name, &env) {
        let err = sys::exec(&path, &config.argv, &env);
        if err.raw_os_error() != Some(sys::ENOENT) && err.raw_os_error() != Some(20) {
            verdict = err; // 20 = ENOTDIR: no such file either
        }
    }
    let code = if verdict.raw_os_error() == Some(sys::ENOENT) { 127 } else { 126 };
    Refusal { code, message: format!("exec {:?}: {}", String::from_utf8_lossy(name), verdict) }
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
    path.split(|byte| *byte == b':').map(|dir| [if dir.is_empty() { b"." } else { dir }, b"/", name].concat()).collect()
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
