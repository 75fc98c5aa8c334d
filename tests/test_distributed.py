"""Many processes, on the CPU: two started by torchrun (backend gloo), as a user starts them."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import runs
import wgan_gp
from conftest import objects, rows, same, states

ROOT = Path(__file__).resolve().parent.parent
