//! Residents come into real cells: KeyPackages are made apart and kept, lists of them reach the agent
//! as home nodes bring them, and what was done before a kill is not done again.

use super::audience::{Agent, Device, call, joining, open};
use super::broadcast::Cells;
use super::cpu_seconds;
use crate::Failure;
use crate::local::layout::ADMINISTRATIONS;
use bytes::Bytes;
use chancery_proto::federation::v1 as federation;
use chancery_proto::node::v1::cell_item::Item;
use prost::Message as _;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// Seats that one list brings.
pub(super) const LIST: usize = 256;
/// Devices that read, in each of the first lists.
const DEVICES: usize = 20;
/// Lists whose KeyPackages one workshop makes: its store is thrown away with their private parts.
const WORKSHOP: usize = 64;

/// What is kept between runs.
pub(super) struct Cache(PathBuf);

/// CPU seconds and bytes that residents took, in this run.
#[derive(Default)]
pub(super) struct Spent {
    pub(super) made: usize,
    pub(super) making: f64,
    pub(super) admitted: usize,
    pub(super) admitting: f64,
    pub(super) wire: usize,
    pub(super) joined: usize,
    pub(super) joining: f64,
}

/// A device in a cell: where its store is, whose resident it has, and which cell.
pub(super) struct Seated {
    pub(super) store: PathBuf,
    pub(super) home: usize,
    pub(super) cell: u32,
}

impl Cache {
    pub(super) fn open(folder: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(folder.join("devices"))?;
        Ok(Self(folder.to_owned()))
    }

    /// The agent's store.
    pub(super) fn agent(&self) -> PathBuf {
        self.0.join("agent.db")
    }

    fn list(&self, number: usize) -> PathBuf {
        self.0.join(format!("list-{number}"))
    }

    fn device(&self, number: usize) -> PathBuf {
        self.0.join(format!("devices/{number}.db"))
    }

    /// Makes lists of KeyPackages that are not there yet.
    pub(super) async fn prepare(
        &self,
        cells: &Cells,
        agent: &Agent,
        spent: &mut Spent,
        quiet: bool,
    ) -> Result<(), Failure> {
        let lists = cells.residents.div_ceil(LIST);
        let bar = crate::local::bar(cells.residents, "KeyPackages made", quiet);
        let mut number = 0;
        while number < lists {
            let workshop_folder = self.0.join("workshop");
            let _ = std::fs::remove_dir_all(&workshop_folder);
            std::fs::create_dir(&workshop_folder)?;
            let workshop = open(&workshop_folder.join("residents.db"))?;
            for list in number..lists.min(number + WORKSHOP) {
                let (size, channel) = (cells.list(list), agent.channel.clone());
                bar.inc(size as u64);
                if self.list(list).exists() {
                    continue;
                }
                let devices = if list * DEVICES < cells.devices { DEVICES.min(size) } else { 0 };
                let before = cpu_seconds();
                let made = call(&workshop, move |tx| {
                    (devices..size).map(|_| joining(tx, &channel)).collect::<Result<Vec<_>, _>>()
                });
                let mut seats = made.await?;
                spent.making += cpu_seconds() - before;
                spent.made += seats.len();
                for device in 0..devices {
                    let path = self.device(list * DEVICES + device);
                    let _ = std::fs::remove_file(&path);
                    let (device, joining) = Device::ask(&path, home(list), agent).await?;
                    device.close().await;
                    seats.push(joining);
                }
                let unfinished = self.0.join("unfinished");
                let mut file = File::create(&unfinished)?;
                file.write_all(
                    &federation::SeatList { joining: seats, ..Default::default() }.encode_to_vec(),
                )?;
                std::fs::rename(unfinished, self.list(list))?;
            }
            number += WORKSHOP;
            workshop.close().await;
        }
        let _ = std::fs::remove_dir_all(self.0.join("workshop"));
        bar.finish_and_clear();
        Ok(())
    }

    /// Brings all residents into cells that are in none yet; devices among them come in, too.
    pub(super) async fn enrol(
        &self,
        cells: &Cells,
        agent: &Agent,
        spent: &mut Spent,
        quiet: bool,
    ) -> Result<(), Failure> {
        let bar = crate::local::bar(cells.residents, "residents in cells", quiet);
        let mut done = usize::try_from(agent.count().await?.0).unwrap_or(usize::MAX);
        bar.inc(done as u64);
        for number in 0..cells.residents.div_ceil(LIST) {
            let size = cells.list(number);
            if done >= size {
                done -= size;
                continue;
            }
            let mut bytes = Vec::new();
            BufReader::new(File::open(self.list(number))?).read_to_end(&mut bytes)?;
            let list = federation::SeatList::decode(Bytes::from(bytes)).map_err(|_| Failure::Panicked)?;
            let before = cpu_seconds();
            agent.admit(home(number), list.joining).await?;
            let items = agent.drain().await?;
            spent.admitting += cpu_seconds() - before;
            spent.admitted += size - done;
            done = 0;
            for (_, item) in items {
                spent.wire += item.encoded_len();
                if let Some(Item::Change(change)) = item.item
                    && number * DEVICES < cells.devices
                {
                    self.join(number, agent, &change, spent).await?;
                }
            }
            bar.inc(size as u64);
        }
        bar.finish_and_clear();
        Ok(())
    }

    async fn join(
        &self,
        list: usize,
        agent: &Agent,
        change: &federation::CellChange,
        spent: &mut Spent,
    ) -> Result<(), Failure> {
        let mut seated = OpenOptions::new().create(true).append(true).open(self.0.join("seated"))?;
        for number in list * DEVICES..(list + 1) * DEVICES {
            let path = self.device(number);
            if !path.exists() {
                continue;
            }
            let device = Device::open(&path).await?;
            if change.admitted.iter().any(|seat| seat.seat_id == device.seat.as_bytes().as_slice()) {
                let before = cpu_seconds();
                device.join(&agent.name, change).await?;
                spent.joining += cpu_seconds() - before;
                spent.joined += 1;
                writeln!(seated, "{number} {} {}", list % ADMINISTRATIONS.len(), change.cell)?;
            }
            device.close().await;
        }
        Ok(())
    }

    /// Devices that are in cells, copied to a folder.
    pub(super) fn seated(&self, folder: &Path) -> Result<Vec<Seated>, Failure> {
        std::fs::create_dir_all(folder)?;
        let text = std::fs::read_to_string(self.0.join("seated")).unwrap_or_default();
        let read = |line: &str| {
            let mut fields = line.split(' ');
            let number: usize = fields.next()?.parse().ok()?;
            Some((number, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        };
        let copied = |(number, home, cell): (usize, usize, u32)| {
            let store = folder.join(format!("{number}.db"));
            std::fs::copy(self.device(number), &store)?;
            Ok(Seated { store, home, cell })
        };
        text.lines().filter_map(read).map(copied).collect()
    }
}

/// Home of the residents of a list.
fn home(list: usize) -> &'static str {
    ADMINISTRATIONS.get(list % ADMINISTRATIONS.len()).copied().unwrap_or(ADMINISTRATIONS[0])
}
