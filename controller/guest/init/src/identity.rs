//! Who this guest is: the kernel's host name and the files of the workload's root that say it.

use crate::config::Config;
use crate::setup::{warn, ROOT};
use crate::sys;
use std::fs::{self, OpenOptions};
use std::io::{Read, Result, Write};
use std::os::unix::fs::OpenOptionsExt;

const HOSTNAME: &str = "/etc/hostname";
const HOSTS: &str = "/etc/hosts";
const MACHINE_ID: &str = "/etc/machine-id";
const LIMIT: u64 = 1 << 20;

pub fn set_hostname(name: &[u8]) -> Result<()> {
    fs::write("/proc/sys/kernel/hostname", name)
}

/// Inside the root, before the workload runs. What cannot be written is no reason to stop.
pub fn write(config: &Config) {
    let _ = fs::create_dir_all("/etc");
    let hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{}",
        own_line(&config.hostname)
    );
    let files = [
        (HOSTNAME, line(&config.hostname)),
        (HOSTS, hosts),
        (MACHINE_ID, line(&config.machine_id)),
    ];
    for (path, content) in files {
        if content != "\n" {
            put(path, &content).unwrap_or_else(|err| warn(format!("{}: {}", path, err)));
        }
    }
}

/// Become `new`, whole or an Err. What is the same in both is not touched: the workload may have
/// changed it since.
pub fn change(config: &mut Config, new: Config) -> Result<()> {
    sys::within(ROOT, || update(config, &new)).and_then(|done| done)?;
    *config = new;
    Ok(())
}

/// Inside the root, while the workload runs.
fn update(old: &Config, new: &Config) -> Result<()> {
    if new.machine_id != old.machine_id {
        fs::create_dir_all("/etc")?;
        put(MACHINE_ID, &line(&new.machine_id))?;
    }
    if new.hostname != old.hostname {
        if fs::symlink_metadata(HOSTNAME).is_ok() {
            put(HOSTNAME, &line(&new.hostname))?;
        }
        let hosts = String::from_utf8(small_file(HOSTS)).unwrap_or_default();
        let (before, after) = (own_line(&old.hostname), own_line(&new.hostname));
        if hosts.contains(&before) && hosts.len() < LIMIT as usize {
            put(HOSTS, &hosts.replace(&before, &after))?;
        }
        set_hostname(&new.hostname)?;
    }
    Ok(())
}

fn line(value: &[u8]) -> String {
    format!("{}\n", String::from_utf8_lossy(value))
}

fn own_line(hostname: &[u8]) -> String {
    format!("127.0.1.1\t{}", line(hostname))
}

/// In one step, and never through a link of the image: nobody sees half a file.
fn put(path: &str, content: &str) -> Result<()> {
    let part = format!("{}.torpor", path);
    let _ = fs::remove_file(&part);
    let made = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&part);
    let done = made.and_then(|mut file| file.write_all(content.as_bytes()));
    done.and_then(|_| fs::rename(&part, path)).map_err(|err| {
        let _ = fs::remove_file(&part);
        err
    })
}

/// At most 1 MiB of a regular file; a pipe of that name must not hold us up.
pub fn small_file(path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = OpenOptions::new().read(true).custom_flags(sys::O_NONBLOCK).open(path) {
        if file.metadata().map_or(false, |m| m.is_file()) {
            let _ = file.take(LIMIT).read_to_end(&mut bytes);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_put_in_the_place_of_a_link_not_through_it() {
        let home = std::env::temp_dir().join(format!("torpor-identity-{}", std::process::id()));
        fs::create_dir(&home).unwrap();
        let at = |name: &str| home.join(name).to_str().unwrap().to_string();
        fs::write(at("target"), "mine").unwrap();
        std::os::unix::fs::symlink(at("target"), at("link")).unwrap();
        fs::write(at("link.torpor"), "left by a crash").unwrap();
        put(&at("link"), "new\n").unwrap();
        assert_eq!(small_file(&at("link")), b"new\n");
        assert_eq!(small_file(&at("target")), b"mine");
        assert!(put(&at("none/file"), "").is_err());
        fs::create_dir(at("dir")).unwrap();
        assert!(put(&at("dir"), "").is_err());
        assert_eq!(fs::read_dir(&home).unwrap().count(), 3, "parts are left behind");
        fs::remove_dir_all(home).unwrap();
    }
}
