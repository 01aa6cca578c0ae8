//! The one loop: signals, workload output, the agent port, the power button; then the way out.

use crate::config::Config;
use crate::ports::{Agent, Log, Outbox};
use crate::repair;
use crate::setup::{self, warn, Fault};
use crate::sys::{self, Epoll, EPOLLET, EPOLLIN, EPOLLOUT};
use crate::wire::{encode, frame, int, key, kind, parse, Fields, Frame, PROTOCOL};
use crate::workload::{self, Exit};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

const SIGNALS: u64 = 1;
const OUTPUT: u64 = 2;
const AGENT: u64 = 3;
const REPORT: u64 = 4;
const LOG: u64 = 5;
const BUTTON: u64 = 16; // and up

/// The edge a port's state changes on: data, room, the host coming or going.
const PORT_EVENTS: u32 = EPOLLIN | EPOLLOUT | EPOLLET;
const REAP_DEADLINE: Duration = Duration::from_secs(5);
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

pub struct Supervisor {
    epoll: Epoll,
    signals: File,
    agent: Option<Agent>,
    report: Option<Outbox>,
    log: Log,
    buttons: Vec<File>,
    config: Config,
    facts: Fields, // of this boot: kernel, init, boot id
    sequence: u32,
    pid: i32, // 0: not started
    status: Option<i32>,
    exit: Option<Exit>,
    asked: bool,
    kill_at: Option<Instant>,
}

impl Supervisor {
    /// Takes the ports agent, report, log, and the read end of the workload's output.
    pub fn new(ports: [Option<File>; 3], output: File) -> std::io::Result<Self> {
        let stop = [sys::SIGTERM, sys::SIGINT, sys::SIGPWR, sys::SIGUSR1, sys::SIGUSR2];
        let signals = sys::signals(&[&stop[..], &[sys::SIGCHLD]].concat())?;
        let [agent, report, log] = ports;
        let epoll = Epoll::new()?;
        epoll.add(&signals, EPOLLIN, SIGNALS)?;
        epoll.add(&output, EPOLLIN, OUTPUT)?;
        for (port, token) in [(&agent, AGENT), (&report, REPORT), (&log, LOG)] {
            if let Some(file) = port {
                epoll.add(file, PORT_EVENTS, token)?;
            }
        }
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim_end().to_string();
        let facts = Fields::default()
            .bytes(key::KERNEL, read("/proc/sys/kernel/osrelease").as_bytes())
            .bytes(key::INIT, env!("CARGO_PKG_VERSION").as_bytes())
            .bytes(key::BOOT_ID, read("/proc/sys/kernel/random/boot_id").as_bytes());
        Ok(Supervisor {
            epoll,
            signals,
            agent: agent.map(Agent::new),
            report: report.map(Outbox::new),
            log: Log { port: log, output, pump: Default::default() },
            buttons: Vec::new(),
            config: Config::default(),
            facts,
            sequence: 0,
            pid: 0,
            status: None,
            exit: None,
            asked: false,
            kill_at: None,
        })
    }

    pub fn booted(&mut self) {
        self.report(kind::BOOTED, self.facts.clone());
    }

    fn started(&mut self) {
        let pid = i64::from(self.pid);
        self.report(kind::STARTED, Fields::default().int(key::PID, pid));
    }

    pub fn configured(&mut self, config: Config) {
        self.config = config;
        self.watch_power_button();
    }

    /// `output` is the write end of the workload's pipe; nobody else keeps it open.
    pub fn start(&mut self, output: File) {
        match workload::start(&self.config, &output) {
            Err(refused) => self.exit = Some(refused),
            Ok(pid) => {
                self.pid = pid;
                self.started();
            }
        }
    }

    /// Serve until the workload has ended, then end the machine.
    pub fn run(&mut self) -> ! {
        while self.status.is_none() && self.exit.is_none() {
            self.turn(None);
        }
        self.finish()
    }

    /// No workload can run: say so and switch off.
    pub fn fail(&mut self, fault: &Fault) -> ! {
        warn(format!("error {}: {}", fault.errno, fault.what));
        let fields = Fields::default()
            .int(key::ERRNO, i64::from(fault.errno))
            .bytes(key::MESSAGE, fault.what.as_bytes());
        self.report(kind::ERROR, fields);
        self.flush_all();
        setup::power_off()
    }

    /// Wait for something (at most until `until`) and deal with it.
    fn turn(&mut self, until: Option<Instant>) {
        let silence = self.agent.as_ref().and_then(Agent::silence_ends);
        let next = [until, silence, self.kill_at].iter().flatten().min().copied();
        let left =
            next.map(|at| at.saturating_duration_since(Instant::now()).as_millis() as i32 + 1);
        for token in self.epoll.wait(left.unwrap_or(-1)) {
            match token {
                SIGNALS => self.on_signals(),
                OUTPUT => self.on_output(),
                AGENT => self.on_agent(),
                REPORT => self.report.iter_mut().for_each(Outbox::flush),
                LOG => self.log.flush(),
                other => self.on_button((other - BUTTON) as usize),
            }
        }
        if let Some(agent) = &mut self.agent {
            agent.settle();
        }
        if self.kill_at.map_or(false, |at| Instant::now() >= at) {
            self.kill_at = None;
            setup::kill_all();
        }
    }

    fn on_signals(&mut self) {
        let mut info = [0u8; 128];
        while (&self.signals).read(&mut info).is_ok() {
            if i32::from(info[0]) != sys::SIGCHLD {
                self.ask_stop(self.config.stop_timeout_ms);
            }
        }
        while let Ok(Some((pid, status))) = sys::reap() {
            if pid == self.pid {
                self.status = Some(status);
            }
        }
    }

    fn on_output(&mut self) {
        if self.log.pull() == Some(0) {
            self.epoll.remove(&self.log.output);
        }
    }

    fn on_agent(&mut self) {
        let frames = self.agent.as_mut().map_or_else(Vec::new, Agent::receive);
        for request in frames {
            self.answer(&request);
        }
        if let Some(agent) = &mut self.agent {
            agent.out.flush();
        }
    }

    fn answer(&mut self, request: &Frame) {
        let (reply, payload) = match request.kind {
            frame::HELLO => (frame::HELLO_REPLY, self.hello().0),
            frame::INFO => (frame::INFO_REPLY, self.info().0),
            frame::PING => (frame::PONG, request.payload.clone()),
            frame::SHUTDOWN => {
                self.ask_stop(grace(&request.payload).unwrap_or(self.config.stop_timeout_ms));
                (frame::SHUTDOWN_REPLY, Vec::new())
            }
            frame::TIME | frame::RESEED | frame::IDENTITY => {
                self.repair(request).unwrap_or_else(|err| refused(err.raw_os_error().unwrap_or(5)))
            }
            _ => refused(38), // ENOSYS
        };
        if let Some(agent) = &mut self.agent {
            agent.out.send(&encode(reply, request.nonce, &payload));
        }
    }

    /// Under a new nonce another run has begun, whose files know nothing yet: all is said again.
    fn repair(&mut self, request: &Frame) -> std::io::Result<(u8, Vec<u8>)> {
        let nonce = self.config.nonce.clone();
        let reply = repair::apply(request.kind, &request.payload, &mut self.config)?;
        if self.config.nonce != nonce {
            self.booted();
            if self.pid > 0 {
                self.started();
            }
            self.ended();
        }
        Ok(reply)
    }

    fn hello(&self) -> Fields {
        self.facts.clone().int(key::PROTOCOL, PROTOCOL).bytes(key::NONCE, &self.config.nonce)
    }

    fn info(&self) -> Fields {
        let lost = self.log.pump.lost_in_all as i64;
        let asked = i64::from(self.asked);
        let mut fields = self.hello().int(key::ASKED, asked).int(key::LOST, lost);
        if self.pid > 0 {
            fields = fields.int(key::PID, i64::from(self.pid));
        }
        match &self.exit {
            Some(exit) => ended(fields, exit),
            None => fields,
        }
    }

    /// To the report port, and to the agent port where somebody listens.
    fn report(&mut self, kind: i64, fields: Fields) {
        self.sequence += 1;
        let payload = [Fields::default().int(key::KIND, kind).0, fields.0].concat();
        let frame = encode(frame::REPORT, self.sequence, &payload);
        let agent = self.agent.as_mut().map(|a| &mut a.out);
        for port in [self.report.as_mut(), agent].into_iter().flatten() {
            port.send(&frame);
        }
    }

    /// The stop signal now, SIGKILL after the grace. Asked again, the earlier end counts.
    fn ask_stop(&mut self, grace_ms: u64) {
        if self.pid > 0 && !self.asked && self.status.is_none() {
            sys::send_signal(-self.pid, self.config.stop_signal);
        }
        self.asked = true;
        let at = Instant::now() + Duration::from_millis(grace_ms);
        self.kill_at = Some(self.kill_at.map_or(at, |before| before.min(at)));
    }

    fn watch_power_button(&mut self) {
        for path in
            power_buttons(&fs::read_to_string("/proc/bus/input/devices").unwrap_or_default())
        {
            let file = OpenOptions::new().read(true).custom_flags(sys::O_NONBLOCK).open(&path);
            let token = BUTTON + self.buttons.len() as u64;
            match file.and_then(|f| self.epoll.add(&f, EPOLLIN, token).map(|_| f)) {
                Ok(file) => self.buttons.push(file),
                Err(err) => warn(format!("{}: {}", path, err)),
            }
        }
    }

    fn on_button(&mut self, index: usize) {
        let mut event = [0u8; 24]; // struct input_event: time, then u16 type, u16 code, i32 value
        let mut pressed = false;
        while let Some(Ok(24)) = self.buttons.get(index).map(|mut f| f.read(&mut event)) {
            pressed |= event[16..24] == [1, 0, 116, 0, 1, 0, 0, 0]; // EV_KEY, KEY_POWER, down
        }
        if pressed {
            self.ask_stop(self.config.stop_timeout_ms);
        }
    }

    fn finish(&mut self) -> ! {
        let status = self.status.unwrap_or(0);
        let kills = setup::oom_kills();
        setup::kill_all();
        reap_all();
        let exit = self.exit.take().unwrap_or_else(|| Exit::from_status(status, kills, self.asked));
        self.exit = Some(exit);
        self.kill_at = None;
        while self.log.pull().map_or(false, |count| count > 0) {}
        self.ended();
        self.flush_all();
        setup::power_off()
    }

    /// Say how the workload ended, if it did: to the host, and on the console for a second witness.
    fn ended(&mut self) {
        if let Some(exit) = self.exit.clone() {
            let fields = Fields::default().int(key::LOST, self.log.pump.lost_in_all as i64);
            self.report(kind::EXIT, ended(fields, &exit));
            let nonce = String::from_utf8_lossy(&self.config.nonce);
            setup::say(format!("torpor-exit {} code={} signal={}", nonce, exit.code, exit.signal));
        }
    }

    /// Give the host a little time to take what is left.
    fn flush_all(&mut self) {
        let until = Instant::now() + FLUSH_DEADLINE;
        self.epoll.remove(&self.log.output);
        while Instant::now() < until {
            let reported = self.report.as_ref().map_or(true, Outbox::empty);
            let logged = self.log.port.is_none() || self.log.pump.pending().is_empty();
            if reported && logged {
                return;
            }
            self.turn(Some(until));
        }
    }
}

fn ended(fields: Fields, exit: &Exit) -> Fields {
    fields
        .int(key::CODE, i64::from(exit.code))
        .int(key::SIGNAL, i64::from(exit.signal))
        .int(key::OOM, i64::from(exit.oom))
        .int(key::ASKED, i64::from(exit.asked))
        .bytes(key::MESSAGE, exit.message.as_bytes())
}

fn refused(errno: i32) -> (u8, Vec<u8>) {
    (frame::REFUSED, Fields::default().int(key::ERRNO, i64::from(errno)).0)
}

fn grace(payload: &[u8]) -> Option<u64> {
    let fields = parse(payload)?;
    let (_, value) = fields.into_iter().find(|(name, _)| *name == key::GRACE)?;
    int(value).filter(|ms| *ms >= 0).map(|ms| (ms as u64).min(86_400_000))
}

fn reap_all() {
    let until = Instant::now() + REAP_DEADLINE;
    while let Ok(ended) = sys::reap() {
        if ended.is_none() {
            if Instant::now() > until {
                return warn("a process does not die");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Event devices of everything that is called a power button.
fn power_buttons(devices: &str) -> Vec<String> {
    let blocks = devices.split("\n\n").filter(|block| block.contains("Name=\"Power Button\""));
    let handlers =
        blocks.filter_map(|block| block.lines().find_map(|l| l.strip_prefix("H: Handlers=")));
    let events =
        handlers.flat_map(|line| line.split_whitespace().filter(|word| word.starts_with("event")));
    events.map(|event| format!("/dev/input/{}", event)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_power_button() {
        let text = "I: Bus=0019\nN: Name=\"Power Button\"\nH: Handlers=kbd event1 \n\n\
                    N: Name=\"Keyboard\"\nH: Handlers=event0\n\nN: Name=\"Power Button\"\nH: Handlers=event7\n";
        assert_eq!(power_buttons(text), ["/dev/input/event1", "/dev/input/event7"]);
    }

    #[test]
    fn grace_is_bounded_and_optional() {
        assert_eq!(grace(&Fields::default().int(key::GRACE, 1500).0), Some(1500));
        assert_eq!(grace(&Fields::default().int(key::GRACE, -1).0), None);
        assert_eq!(grace(&Fields::default().int(key::GRACE, i64::MAX).0), Some(86_400_000));
        assert_eq!(grace(b""), None);
        assert_eq!(grace(b"\x01"), None);
    }
}
