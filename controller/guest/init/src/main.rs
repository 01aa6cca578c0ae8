//! PID 1 of a Torpor guest. It stays in the initramfs: loads modules, mounts the image and the
//! overlay disk, starts the workload in its own mount namespace, supervises it, serves the agent
//! port, and powers the machine off when the workload ends. One thread, no allocation that the
//! workload or the host can make grow without bound.
//!
//! Three virtio-serial ports: `torpor.agent.0` (requests and replies), `torpor.report.0` (life
//! cycle, guest to host) and `torpor.log.0` (workload output, raw). The console carries kernel
//! messages and ours, nothing of the workload.

mod config;
mod identity;
mod ports;
mod pump;
mod repair;
mod setup;
mod supervisor;
mod sys;
mod users;
mod wire;
mod workload;

use setup::Fault;
use supervisor::Supervisor;

const PORTS: [&str; 3] = ["torpor.agent.0", "torpor.report.0", "torpor.log.0"];

fn main() {
    if std::process::id() != 1 {
        eprintln!("torpor-init: this is the first process of a guest and runs as nothing else");
        std::process::exit(2);
    }
    setup::kernel_interfaces();
    setup::console();
    setup::modules();
    let opened = sys::pipe().and_then(|(output, input)| {
        sys::unblock_reads(&output);
        Ok((Supervisor::new(ports::open(PORTS), output)?, input))
    });
    let (mut supervisor, input) = match opened {
        Ok(ready) => ready,
        Err(err) => {
            setup::warn(format!("cannot set up: {}", err));
            setup::power_off()
        }
    };
    supervisor.booted();
    if let Err(fault) = bring_up(&mut supervisor) {
        supervisor.fail(&fault);
    }
    supervisor.start(input);
    supervisor.run()
}

fn bring_up(supervisor: &mut Supervisor) -> Result<(), Fault> {
    let disk = setup::head(&setup::disk("config")?, config::MAX as u64)?;
    let config = config::decode(&disk).map_err(|what| Fault { errno: 22, what })?;
    identity::set_hostname(&config.hostname).map_err(Fault::at("host name"))?;
    supervisor.configured(config);
    setup::root_file_system()?;
    setup::cgroup();
    Ok(())
}
