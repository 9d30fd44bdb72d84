"""A board under emulation, its broker on loopback, and an application that asks it."""

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import threading
import time

import paho.mqtt.client as mqtt

FIRMWARE = "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd"
MIB = 1 << 20
# where the image has its partition with the settings
SETTINGS_AT = 33 * MIB
# emulation is about 20 times slower than the board
BOOT_MAX_S = 300
ANSWER_MAX_S = 240


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Broker:
    """mosquitto on loopback with persistence; it outlives the board."""

    def __init__(self, folder):
        self.port = free_port()
        config = folder / "mosquitto.conf"
        config.write_text(
            f"user root\nlistener {self.port} 127.0.0.1\nallow_anonymous true\npersistence true\n"
            f"persistence_location {folder}/\nset_tcp_nodelay true\nmax_queued_messages 10000\n"
        )
        log = open(folder / "mosquitto.log", "w")
        self.process = subprocess.Popen(
            [shutil.which("mosquitto", path="/usr/sbin:" + os.environ["PATH"]), "-c", config],
            stdout=log, stderr=log,
        )
        end = time.monotonic() + 20
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert time.monotonic() < end, (folder / "mosquitto.log").read_text()
            time.sleep(0.1)

    def stop(self):
        self.process.terminate()
        self.process.wait(20)


class Board:
    """The image under emulation. Its disk is a copy of the image; `cut` ends it at once."""

    def __init__(self, folder, image, broker_port, updates=None):
        self.folder, self.updates = folder, updates
        self.disk = folder / "disk.img"
        subprocess.run(["cp", "--sparse=always", image, self.disk], check=True)
        with open(self.disk, "r+b") as disk:
            # a medium that is larger than the image
            disk.truncate(os.path.getsize(image) + 256 * MIB)
        self.key = folder / "id"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        self.broker_port, self.ssh_port = broker_port, free_port()
        self.process = None
        self.started = 0.0

    def put(self, name, text):
        """Puts a file on the partition with the settings, as a person does on a laptop."""
        file = self.folder / "setting"
        file.write_text(text)
        self.tool("mcopy", "-o", file, f"::{name}")

    def read(self, name):
        """A file of the partition with the settings; None: it is not there."""
        done = self.tool("mtype", f"::{name}", check=False)
        return done.stdout if done.returncode == 0 else None

    def tool(self, command, *arguments, check=True):
        return subprocess.run(
            [command, "-i", f"{self.disk}@@{SETTINGS_AT}", *arguments],
            check=check, capture_output=True, text=True,
        )

    def start(self):
        command = [
            "qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a76", "-smp", "2", "-m", "1024",
            "-bios", FIRMWARE, "-nographic", "-monitor", "none", "-serial", f"file:{self.folder}/console",
            "-device", "virtio-rng-pci",
            "-drive", f"if=none,id=disk,format=raw,file={self.disk}", "-device", "virtio-blk-pci,drive=disk",
            "-netdev", "user,id=net,restrict=on,"
            f"hostfwd=tcp:127.0.0.1:{self.ssh_port}-:22,"
            f"guestfwd=tcp:10.0.2.100:1883-cmd:nc 127.0.0.1 {self.broker_port}",
            "-device", "virtio-net-pci,netdev=net,romfile=",
        ]
        if self.updates:
            command += [
                "-drive", f"if=none,id=updates,format=raw,readonly=on,file={self.updates}",
                "-device", "virtio-blk-pci,drive=updates",
            ]
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=open(self.folder / "qemu.log", "a"))
        time.sleep(1)
        assert self.process.poll() is None, (self.folder / "qemu.log").read_text()

    def cut(self):
        """Cuts the power: what the system has not written is lost."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        """An orderly end."""
        self.ssh("systemctl poweroff", check=False)
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.cut()

    def ssh(self, command, check=True, limit_s=BOOT_MAX_S):
        """Runs a command on the board as root. Returns what it printed."""
        done = subprocess.run(
            ["ssh", "-q", "-i", self.key, "-p", str(self.ssh_port), "-o", "StrictHostKeyChecking=no",
             "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=20", "-o", "BatchMode=yes",
             "root@127.0.0.1", command],
            capture_output=True, text=True, timeout=limit_s,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def until(self, command, text, limit_s=BOOT_MAX_S):
        """Waits until a command prints a text."""
        end = time.monotonic() + limit_s
        while True:
            said = self.ssh(command, check=False)
            if text in said:
                return said
            if time.monotonic() > end:
                raise AssertionError(f"{command}: not {text!r} within {limit_s} s, but {said!r}")
            time.sleep(2)


class App:
    """An application that keeps an account of what it asked and what was answered."""

    def __init__(self, port, device):
        self.device = device
        self.sent, self.replies = {}, {}
        self.states = queue.Queue()
        self.lock = threading.Lock()
        # of messages: the requests they carry, and those that the broker has acknowledged
        self.numbers, self.taken = {}, set()
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id="app", protocol=mqtt.MQTTv5)
        self.client.on_message = self.came
        self.client.on_publish = self.published
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        self.client.subscribe([
            (f"pilotlight/{device}/reply/app", 1), (f"pilotlight/{device}/status", 1),
            (f"pilotlight/{device}/config/reported", 1),
        ])

    def ask(self, name, **request):
        self.sent[name] = request
        # without a lock that the callbacks take: the client has locks of its own
        message = self.client.publish(
            f"pilotlight/{self.device}/request/app", json.dumps({"id": name, **request}), 1)
        self.numbers[message.mid] = name

    def published(self, _client, _data, number, *_):
        self.taken.add(number)

    @property
    def acknowledged(self):
        """The requests that the broker has acknowledged."""
        return {self.numbers[number] for number in list(self.taken) if number in self.numbers}

    def came(self, _client, _data, message):
        body = json.loads(message.payload)
        if "/reply/" in message.topic:
            with self.lock:
                self.replies.setdefault(body["id"], []).append(body)
        else:
            self.states.put((message.topic.rsplit("/", 1)[1], body))

    def answered(self, name, limit_s=ANSWER_MAX_S):
        """The first reply to a request."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            with self.lock:
                if name in self.replies:
                    return self.replies[name][0]
            time.sleep(0.05)
        raise AssertionError(f"{name}: no reply within {limit_s} s")

    def forget_states(self):
        """What was told before does not count in `state`."""
        while not self.states.empty():
            self.states.get_nowait()

    def state(self, kind, accept, limit_s=BOOT_MAX_S):
        """Waits for a message of the kind `status` or `reported` that `accept` takes."""
        end = time.monotonic() + limit_s
        while True:
            name, body = self.states.get(timeout=max(0.1, end - time.monotonic()))
            if name == kind and accept(body):
                return body
