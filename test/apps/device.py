"""Where the programs under test compute: --device $LLATTE_TEST_DEVICE, cpu if that is not set. A script that imports
this is run on the GPU too (CMakeLists.txt), but for the tests it marks as the CPU's alone."""
import os
import unittest

NAME = os.environ.get("LLATTE_TEST_DEVICE", "cpu")
ARGS = ["--device", NAME]

on_cuda = unittest.skipUnless(NAME == "cuda", "needs a second device")
# For what has nothing to do with the device, or takes long on a GPU that is only imitated.
cpu_alone = unittest.skipUnless(NAME == "cpu", "the CPU's alone")
