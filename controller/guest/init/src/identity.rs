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
    if new.hostname == old.hostname {
        return write_files(old, new);
    }
    set_hostname(&new.hostname)?; // first: it needs no disk, and the workload runs already
    let written = write_files(old, new);
    if written.is_err() {
        set_hostname(&old.hostname)?;
    }
    written
}

fn write_files(old: &Config, new: &Config) -> Result<()> {
    if new.machine_id != old.machine_id {
        rewrite(MACHINE_ID, &line(&new.machine_id))?;
    }
    if new.hostname != old.hostname {
        if fs::symlink_metadata(HOSTNAME).is_ok() {
            rewrite(HOSTNAME, &line(&new.hostname))?;
        }
        let hosts = small_file(HOSTS);
        let (before, after) = (own_line(&old.hostname), own_line(&new.hostname));
        let whole = hosts.len() < LIMIT as usize && !hosts.contains(char::REPLACEMENT_CHARACTER);
        if whole && hosts.contains(&before) {
            rewrite(HOSTS, &hosts.replace(&before, &after))?;
        }
    }
    Ok(())
}

fn line(value: &[u8]) -> String {
    format!("{}\n", String::from_utf8_lossy(value))
}

fn own_line(hostname: &[u8]) -> String {
    format!("127.0.1.1\t{}", line(hostname))
}

/// A new file, never through a link of the image.
fn put(path: &str, content: &str) -> Result<()> {
    if fs::symlink_metadata(path).is_ok() {
        fs::remove_file(path)?;
    }
    let made = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
    made?.write_all(content.as_bytes())
}

/// In one write where there is a file: that needs no room on a full disk, and costs a guest that
/// has just been woken least. A name that ends with the line is never seen to go on.
fn rewrite(path: &str, content: &str) -> Result<()> {
    let flags = sys::O_NOFOLLOW | sys::O_NONBLOCK;
    match OpenOptions::new().write(true).custom_flags(flags).open(path) {
        Ok(mut file) if file.metadata()?.is_file() => {
            file.write_all(content.as_bytes())?;
            file.set_len(content.len() as u64)
        }
        _ => put(path, content),
    }
}

/// At most 1 MiB of a regular file, as text; a pipe of that name must not hold us up.
pub fn small_file(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = OpenOptions::new().read(true).custom_flags(sys::O_NONBLOCK).open(path) {
        if file.metadata().map_or(false, |m| m.is_file()) {
            let _ = file.take(LIMIT).read_to_end(&mut bytes);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_takes_the_place_of_a_link_and_keeps_its_own() {
        let home = std::env::temp_dir().join(format!("torpor-identity-{}", std::process::id()));
        fs::create_dir(&home).unwrap();
        let at = |name: &str| home.join(name).to_str().unwrap().to_string();
        fs::write(at("target"), "mine").unwrap();
        for write in [put, rewrite] {
            std::os::unix::fs::symlink(at("target"), at("link")).unwrap();
            write(&at("link"), "longer\n").unwrap();
            write(&at("link"), "new\n").unwrap();
            assert_eq!(small_file(&at("link")), "new\n");
            assert_eq!(small_file(&at("target")), "mine");
            write(&at("link"), "longer\n").unwrap();
            assert_eq!(small_file(&at("link")), "longer\n");
            fs::remove_file(at("link")).unwrap();
            assert!(write(&at("none/file"), "").is_err());
            assert!(write(&home.to_str().unwrap(), "").is_err());
        }
        fs::remove_dir_all(home).unwrap();
    }
}
