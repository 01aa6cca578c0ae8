//! One bounded log: NAME.log, rotated to NAME.log.1, NAME.log.2, ...
//!
//! Never more than `max_bytes` × `files` on disk, never an error to the caller: what cannot be
//! written is counted, and a line says so as soon as writing works again. With `head` it is the
//! other way round: the first `max_bytes` are kept, always a true beginning without our own words.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    pub max_bytes: u64,
    pub files: u32,
    pub head: bool,
}

pub struct Log {
    current: PathBuf,
    limits: Limits,
    file: Option<File>,
    size: u64,
    at_line_start: bool,
    /// Bytes dropped since the last gap line.
    pub lost: u64,
    closed: bool,
}

impl Log {
    /// Go on with the files in `dir` that are there.
    pub fn open(dir: &Path, name: &str, limits: Limits) -> io::Result<Log> {
        let current = dir.join(format!("{name}.log"));
        let mut log = Log {
            current,
            limits,
            file: None,
            size: 0,
            at_line_start: false,
            lost: 0,
            closed: false,
        };
        // A full disk at the start is a gap like any other; no directory is a mistake to report.
        match log.open_current() {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                return Err(e)
            }
            _ => log.at_line_start = log.size == 0,
        }
        Ok(log)
    }

    pub fn append(&mut self, data: &[u8]) {
        if self.limits.head {
            self.append_head(data);
        } else if self.mark_gap() {
            self.lost += (data.len() - self.write(data)) as u64;
        } else {
            self.lost += data.len() as u64;
        }
    }

    /// Say how much was lost, if anything was; false when even that cannot be written.
    pub fn mark_gap(&mut self) -> bool {
        if self.lost == 0 || self.limits.head {
            return true;
        }
        let text = format!("[torpor: {} bytes lost]", self.lost);
        let written = self.write_line(&text);
        if written {
            self.lost = 0;
        }
        written
    }

    /// Say that an earlier keeper of these pipes died: what it had read and not written is lost.
    pub fn mark_resumed(&mut self) {
        if !self.limits.head {
            self.write_line("[torpor: log keeper restarted, output may be lost here]");
        }
    }

    fn write_line(&mut self, text: &str) -> bool {
        let start = if self.at_line_start { "" } else { "\n" };
        let line = format!("{start}{text}\n");
        self.write(line.as_bytes()) == line.len()
    }

    fn append_head(&mut self, data: &[u8]) {
        let room = self.limits.max_bytes.saturating_sub(self.size);
        let part = &data[..data.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        // After a failure nothing may follow: the rest would stand in the wrong place.
        if self.closed || self.write(part) < data.len() {
            self.closed = true;
            self.file = None;
        }
    }

    /// Returns how many bytes are in the files now.
    fn write(&mut self, data: &[u8]) -> usize {
        let mut written = 0;
        while written < data.len() {
            if self.ready().is_err() {
                break;
            }
            let room = usize::try_from(self.limits.max_bytes - self.size).unwrap_or(usize::MAX);
            let part = &data[written..data.len().min(written.saturating_add(room))];
            match self.file.as_mut().map(|f| f.write(part)) {
                Some(Ok(n)) if n > 0 => {
                    self.size += n as u64;
                    self.at_line_start = part[n - 1] == b'\n';
                    written += n;
                }
                Some(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        written
    }

    /// Have a file with room in it.
    fn ready(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.open_current()?;
        }
        if self.size >= self.limits.max_bytes {
            self.rotate()?;
            self.open_current()?;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for n in (1..self.limits.files).rev() {
            if_there(fs::rename(self.numbered(n - 1), self.numbered(n)))?;
        }
        if self.limits.files == 1 {
            if_there(fs::remove_file(&self.current))?;
        }
        self.file = None;
        self.size = 0;
        Ok(())
    }

    fn open_current(&mut self) -> io::Result<()> {
        let file = OpenOptions::new().create(true).append(true).mode(0o640).open(&self.current)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn numbered(&self, n: u32) -> PathBuf {
        if n == 0 {
            return self.current.clone();
        }
        let mut name = self.current.clone().into_os_string();
        name.push(format!(".{n}"));
        name.into()
    }
}

fn if_there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let id = std::process::id();
            let path = std::env::temp_dir().join(format!("logkeeper-{id}-{name}"));
            fs::create_dir(&path).unwrap();
            Dir(path)
        }

        fn log(&self, max_bytes: u64, files: u32, head: bool) -> Log {
            Log::open(&self.0, "c", Limits { max_bytes, files, head }).unwrap()
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.0.join(name)).unwrap_or_else(|_| "absent".into())
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn full() -> Option<File> {
        Some(OpenOptions::new().write(true).open("/dev/full").unwrap())
    }

    #[test]
    fn rotation_keeps_the_newest_bytes_and_the_bound() {
        let dir = Dir::new("rotation");
        let mut log = dir.log(4, 3, false);
        log.append(b"0123456789abcdef");
        assert_eq!(dir.read("c.log"), "cdef");
        assert_eq!(dir.read("c.log.1"), "89ab");
        assert_eq!(dir.read("c.log.2"), "4567");
        assert_eq!(dir.read("c.log.3"), "absent");
        log.append(b"g");
        assert_eq!(dir.read("c.log"), "g");
        assert_eq!(dir.read("c.log.2"), "89ab");
    }

    #[test]
    fn file_that_outgrew_a_lowered_bound_is_rotated_away() {
        let dir = Dir::new("lowered");
        dir.log(100, 2, false).append(b"0123456789");
        dir.log(4, 2, false).append(b"abc");
        assert_eq!(dir.read("c.log"), "abc");
        assert_eq!(dir.read("c.log.1"), "0123456789");
    }

    #[test]
    fn next_keeper_goes_on_where_the_last_one_ended() {
        let dir = Dir::new("append");
        dir.log(100, 2, false).append(b"one ");
        let mut log = dir.log(100, 2, false);
        log.append(b"two");
        log.mark_resumed();
        let said = "[torpor: log keeper restarted, output may be lost here]";
        assert_eq!(dir.read("c.log"), format!("one two\n{said}\n"));
    }

    #[test]
    fn lost_bytes_are_counted_and_marked_once_writing_works() {
        let dir = Dir::new("gap");
        let mut log = dir.log(1000, 2, false);
        log.append(b"before");
        let file = log.file.take();
        log.file = full();
        log.append(b"0123456789");
        log.append(b"01234");
        assert_eq!(log.lost, 15);
        assert!(!log.mark_gap());
        log.file = file;
        log.append(b"after\n");
        assert_eq!(log.lost, 0);
        assert_eq!(dir.read("c.log"), "before\n[torpor: 15 bytes lost]\nafter\n");
    }

    #[test]
    fn head_keeps_a_true_beginning_across_keepers() {
        let dir = Dir::new("head");
        dir.log(8, 1, true).append(b"01234");
        let mut log = dir.log(8, 1, true);
        log.mark_resumed();
        log.append(b"56789");
        log.append(b"more");
        assert_eq!(dir.read("c.log"), "01234567");
        assert_eq!(log.lost, 0);
        dir.log(8, 1, true).append(b"even more");
        assert_eq!(dir.read("c.log"), "01234567");
        assert_eq!(dir.read("c.log.1"), "absent");
    }

    #[test]
    fn head_writes_nothing_after_a_failed_write() {
        let dir = Dir::new("headfull");
        let mut log = dir.log(100, 1, true);
        log.append(b"good");
        log.file = full();
        log.append(b"bad");
        log.append(b"later");
        assert_eq!(dir.read("c.log"), "good");
    }
}
