"""Print the instruction sets that numpy would choose on this processor, for `NPY_DISABLE_CPU_FEATURES`."""

try:
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
except ImportError:  # numpy before 2.0
    from numpy.core._multiarray_umath import __cpu_dispatch__, __cpu_features__

if __name__ == "__main__":
    print(" ".join(feature for feature in __cpu_dispatch__ if __cpu_features__[feature]))
