//! `config watch`: the states of all devices by their retained reports.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::link::{Link, LinkEvent, settings, take, with};
use super::screen::Screen;
use super::table;
use crate::cli::{BROKE, DONE, WRONG};
use crate::clock;
use crate::limits::rollout::{PUSH_SECONDS_MAX, REDRAW_EVERY};
use crate::rollout::devices::Devices;
use crate::rollout::summary::{OFFLINE, Summary, name_of};
use crate::rollout::update::UpdateMark;

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 all devices have kept the version, or none was named; 2 some have refused it \
                        or rolled it back; 1 others have not ended, or an error."
)]
pub(in crate::cli) struct WatchArgs {
    /// Show what became of this version (default: of what was offered last).
    #[arg(long)]
    version: Option<u64>,
    /// Print the present states and end.
    #[arg(long)]
    once: bool,
    /// End after this time (default: when interrupted).
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=PUSH_SECONDS_MAX))]
    timeout: Option<u64>,
    /// Print a JSON line for each change, and one with the summary.
    #[arg(long)]
    json: bool,
}

/// Shows the states of all devices.
///
/// # Errors
/// If the broker is not reachable.
pub(super) async fn watch(path: Option<&Path>, args: &WatchArgs) -> anyhow::Result<u8> {
    let Some(mqtt) = settings(path)? else { return Ok(WRONG) };
    with(&mqtt, true, async |link| args.run(link).await).await
}

impl WatchArgs {
    async fn run(&self, link: &mut Link) -> anyhow::Result<u8> {
        let mark = self.version.map(|version| UpdateMark { version, digests: None });
        let mut screen = Screen::new(self.json, !self.once, self.version.is_none());
        let Some(mut devices) = link.discover().await? else { return Ok(DONE) };
        let names: Vec<String> = devices.reported().map(|(name, _)| name.to_owned()).collect();
        for name in names {
            show(&mut screen, &devices, mark.as_ref(), &name)?;
        }
        if !self.once {
            self.follow(link, &mut devices, mark.as_ref(), &mut screen).await?;
        }
        let summary = Summary::of_all(&devices, mark.as_ref());
        screen.end(&json!(summary), &self.lines(&summary))?;
        Ok(self.code(&summary))
    }

    async fn follow(
        &self,
        link: &mut Link,
        devices: &mut Devices,
        mark: Option<&UpdateMark>,
        screen: &mut Screen,
    ) -> anyhow::Result<()> {
        let most = Duration::from_secs(self.timeout.unwrap_or(PUSH_SECONDS_MAX));
        let end = tokio::time::Instant::from(clock::now()) + most;
        let mut drawing = tokio::time::interval(REDRAW_EVERY);
        let prefix = link.prefix.clone();
        // ends with the time, or when somebody interrupts it
        loop {
            tokio::select! {
                event = link.next() => match event? {
                    LinkEvent::Interrupted => return Ok(()),
                    LinkEvent::Message(message) => {
                        if let Some(name) = take(message, &prefix, devices) {
                            show(screen, devices, mark, &name)?;
                        }
                    }
                },
                _ = drawing.tick() => {
                    screen.draw(|| self.lines(&Summary::of_all(devices, mark)))?;
                }
                () = tokio::time::sleep_until(end), if self.timeout.is_some() => return Ok(()),
            }
        }
    }

    fn lines(&self, summary: &Summary) -> Vec<String> {
        let devices = table::devices(summary.devices);
        let mut lines = match self.version {
            Some(version) => {
                vec![format!("version {version}, {devices}"), table::bar(summary)]
            }
            None => vec![devices],
        };
        lines.push(table::counts(summary));
        let versions = summary.versions.iter().map(|(version, count)| match version {
            0 => format!("local file {count}"),
            version => format!("version {version} {count}"),
        });
        let versions: Vec<String> = versions.rev().take(VERSIONS_SHOWN).collect();
        lines.push(format!("in force: {}", versions.join(", ")));
        lines.extend(table::reasons(summary));
        lines
    }

    fn code(&self, summary: &Summary) -> u8 {
        match self.version {
            None => DONE,
            Some(_) if summary.failures() > 0 => WRONG,
            Some(_) if summary.kept() == summary.devices && summary.devices > 0 => DONE,
            Some(_) => BROKE,
        }
    }
}

/// Most versions that a table names.
const VERSIONS_SHOWN: usize = 4;

fn show(
    screen: &mut Screen,
    devices: &Devices,
    mark: Option<&UpdateMark>,
    name: &str,
) -> std::io::Result<()> {
    let Some(report) = devices.report_of(name) else { return Ok(()) };
    let state = mark.map_or(report.state, |mark| mark.state_on(report));
    let state = if devices.is_offline(name) && mark.is_none() {
        OFFLINE
    } else {
        name_of(state, mark.is_some())
    };
    screen.change(name, (state, None), report)
}
