//! The one server that stays when the command that started it is done, in `target/kube/standing`.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Programs, folder,
    server::{ENDS_WITHIN, LOOK_EVERY, READY_WITHIN, tail},
};

/// A server that stays.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its process.
    pub id: u32,
    /// `https://` and its address.
    pub url: String,
    /// The file with an administrator's credentials.
    pub kubeconfig: PathBuf,
}

// === impl Standing ===

impl Standing {
    /// Starts it and waits until it is ready, or finds the one that runs. Data, keys and address are those of the last time.
    ///
    /// # Errors
    /// When it can't be started or isn't ready in time.
    pub fn up(programs: &Programs) -> Result<Self, String> {
        let place = Place::new();
        place.start(programs).map_err(|error| format!("`{}`: {error}", place.folder.display()))?;
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let id = place.running().ok_or_else(|| format!("it ended:\n{}", tail(&place.log())))?;
            if let Ok(url) = fs::read_to_string(place.state().join("ready")) {
                let url = url.trim().to_owned();
                let address = url.trim_start_matches("https://");
                fs::write(place.address(), address).map_err(|error| error.to_string())?;
                return Ok(Self { id, url, kubeconfig: place.state().join("kubeconfig") });
            }
            if Instant::now() > deadline {
                place.end(id)?;
                return Err(format!("it isn't ready in time:\n{}", tail(&place.log())));
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Ends it, and gives its process if there was one.
    ///
    /// # Errors
    /// When it can't be ended.
    pub fn down() -> Result<Option<u32>, String> {
        let place = Place::new();
        let running = place.running();
        if let Some(id) = running {
            place.end(id)?;
        }
        Ok(running)
    }
}

#[derive(Debug)]
struct Place {
    folder: PathBuf,
}

// === impl Place ===

impl Place {
    fn new() -> Self {
        Self { folder: folder().join("standing") }
    }

    fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn address(&self) -> PathBuf {
        self.folder.join("address")
    }

    fn start(&self, programs: &Programs) -> io::Result<()> {
        if self.running().is_some() {
            return Ok(());
        }
        fs::create_dir_all(&self.folder)?;
        // What an earlier process left isn't news.
        match fs::remove_file(self.state().join("ready")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut command = Command::new(&programs.server);
        command.arg("-state").arg(self.state());
        if let Ok(address) = fs::read_to_string(self.address()) {
            command.args(["-address", address.trim()]);
        }
        // A process group of its own, so that Ctrl-C in the terminal isn't for it.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(self.log())?).process_group(0);
        fs::write(self.folder.join("pid"), command.spawn()?.id().to_string())
    }

    /// The process, if it still is the one that was started here: numbers are used again.
    fn running(&self) -> Option<u32> {
        let id: u32 = fs::read_to_string(self.folder.join("pid")).ok()?.trim().parse().ok()?;
        let process = Path::new("/proc").join(id.to_string());
        let state = self.state();
        // Empty when the process has ended and only waits to be collected.
        let command = fs::read(process.join("cmdline")).ok()?;
        let ours = command.split(|byte| *byte == 0).any(|part| part == state.as_os_str().as_encoded_bytes());
        ours.then_some(id)
    }

    fn end(&self, id: u32) -> Result<(), String> {
        let deadline = Instant::now() + ENDS_WITHIN;
        self.signal(id, Signal::TERM)?;
        while self.running().is_some() {
            if Instant::now() > deadline {
                self.signal(id, Signal::KILL)?;
                thread::sleep(Duration::from_millis(200));
                return if self.running().is_none() { Ok(()) } else { Err(format!("process {id} doesn't end")) };
            }
            thread::sleep(LOOK_EVERY);
        }
        fs::remove_file(self.folder.join("pid")).map_err(|error| format!("`{}`: {error}", self.folder.display()))
    }

    fn signal(&self, id: u32, signal: Signal) -> Result<(), String> {
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw).ok_or("no process number")?;
        match kill_process(pid, signal) {
            Err(error) if self.running().is_some() => Err(format!("process {id}: {error}")),
            _ => Ok(()),
        }
    }
}
