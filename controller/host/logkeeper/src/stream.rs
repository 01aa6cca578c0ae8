//! One pipe and the log that its bytes go to.

use crate::log::{Limits, Log};
use crate::sys;
use std::path::Path;

pub struct Stream {
    /// The read end; -1 once the pipe has ended (poll ignores negative descriptors).
    pub fd: i32,
    pub log: Log,
}

#[derive(Debug, PartialEq)]
struct Spec<'a> {
    name: &'a str,
    fd: i32,
    dir: &'a str,
    limits: Limits,
}

impl Stream {
    pub fn open(spec: &str) -> Result<Stream, String> {
        let spec = parse(spec).ok_or_else(|| format!("bad stream {spec}"))?;
        sys::set_nonblocking(spec.fd).map_err(|e| format!("descriptor {}: {e}", spec.fd))?;
        let log = Log::open(Path::new(spec.dir), spec.name, spec.limits)
            .map_err(|e| format!("{}/{}.log: {e}", spec.dir, spec.name))?;
        Ok(Stream { fd: spec.fd, log })
    }

    pub fn is_open(&self) -> bool {
        self.fd >= 0
    }

    pub fn owes_a_gap(&self) -> bool {
        self.is_open() && self.log.lost > 0
    }

    pub fn drain_once(&mut self, buffer: &mut [u8]) {
        match sys::read(self.fd, buffer) {
            Ok(0) => self.close(),
            Ok(n) => self.log.append(&buffer[..n]),
            Err(e) if sys::is_transient(&e) => {}
            Err(_) => self.close(),
        }
    }

    fn close(&mut self) {
        self.log.mark_gap();
        sys::close(self.fd);
        self.fd = -1;
    }
}

/// NAME:FD:DIR:MAX_BYTES:FILES[:head]; DIR may contain colons.
fn parse(spec: &str) -> Option<Spec<'_>> {
    let (rest, head) = match spec.strip_suffix(":head") {
        Some(rest) => (rest, true),
        None => (spec, false),
    };
    let (name, rest) = rest.split_once(':')?;
    let (fd, rest) = rest.split_once(':')?;
    let (rest, files) = rest.rsplit_once(':')?;
    let (dir, max_bytes) = rest.rsplit_once(':')?;
    let limits = Limits { max_bytes: max_bytes.parse().ok()?, files: files.parse().ok()?, head };
    let fd = fd.parse().ok()?;
    let sane = !name.is_empty() && !name.contains('/') && dir.starts_with('/') && fd >= 0;
    (sane && limits.max_bytes > 0 && limits.files > 0).then_some(Spec { name, fd, dir, limits })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_is_read_from_its_words_and_the_directory_may_hold_colons() {
        let limits = Limits { max_bytes: 10, files: 3, head: false };
        let spec = Spec { name: "console", fd: 7, dir: "/a:b/c", limits };
        assert_eq!(parse("console:7:/a:b/c:10:3"), Some(spec));
        let limits = Limits { max_bytes: 10, files: 1, head: true };
        let spec = Spec { name: "report", fd: 7, dir: "/a", limits };
        assert_eq!(parse("report:7:/a:10:1:head"), Some(spec));
    }

    #[test]
    fn nonsense_is_refused() {
        for spec in ["", "a:1:/d", "a:x:/d:1:1", "a:1:d:1:1", "../a:1:/d:1:1", "a:1:/d:0:1", "a:1:/d:1:0", "a:-1:/d:1:1"] {
            assert_eq!(parse(spec), None, "{spec}");
        }
    }
}
